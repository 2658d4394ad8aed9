from __future__ import annotations

import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from dbstore import JsonObject, Store
from dooly.batch import Batch
from dooly.catalog import engine_operations, key_of, point_of
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError
from dooly.measure import PASSES, plan_tasks, profile
from dooly.measure._tasks import shuffled
from dooly.measure.engine import _profile as engine_profile
from dooly.measure.engine import _profiler as profiler_module
from dooly.measure.engine._profile import _num_layers
from dooly.measure.engine._profiler import Profiler, Task
from dooly.tracing import TracedDim, TracedModel, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedOperation

    Make = Callable[..., TracedOperation]

Key = tuple[str, JsonObject]
"""Signature and point."""
SERVING = ServingConfig(max_model_len=512, max_num_batched_tokens=256, max_num_seqs=8)


def _points(operations: tuple[TracedOperation, ...], known: Counter[Key]) -> Counter[Key]:
    """Return how often a plan would measure each point, and check that no pass measures one twice."""
    tasks = plan_tasks(operations, SERVING, lambda signature, point: known[signature, point])
    points = [(task.number, op.signature, point_of(op, task.batch)) for task in tasks for op in task.missing]
    assert len(set(points)) == len(points)
    return Counter((signature, point) for _, signature, point in points)


def test_operations_of_one_signature_share_their_points(operation: Make) -> None:
    """The same operation in two modules is measured once."""
    both = (operation("a", "layers.0.q"), operation("a", "layers.0.k"))
    assert _points(both, Counter()) == _points(both[:1], Counter())


def test_a_plan_over_a_full_store_is_empty(operation: Make) -> None:
    """What is measured is not planned again, and a store with one point less gives a plan of that point."""
    operations = (operation("a", "layers.0.q"), operation("r", "sampler", stage="sample", request_dims=("num_reqs",)))
    everything = _points(operations, Counter())
    assert len(everything) > 20
    assert set(everything.values()) == {PASSES}
    assert _points(operations, everything) == Counter()
    lost = Counter({("a", JsonObject({"d0": 64})): 1})
    assert _points(operations, everything - lost) == lost


def test_a_model_that_shares_operations_plans_the_rest(operation: Make) -> None:
    """Beside a model with operations a and b, one with b and c needs the points of c only."""
    a, b, c = (operation(name, f"layers.0.{name}") for name in "abc")
    known = _points((a, b), Counter())
    rest = _points((b, c), known)
    assert {signature for signature, _ in rest} == {"c"}
    assert rest == _points((c,), Counter())


def test_layers_are_counted_by_what_they_are(operation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that happen to be called `layer` are no layers more: the reduced engine has no more of them than the model."""
    monkeypatch.setattr(engine_profile, "cache_bytes", lambda _platform: 1 << 40)
    weight = TracedTensor("bfloat16", (TracedDim("8", "config", 8),), is_parameter=True)
    modules = (operation("a", "blocks.0.layer", count=3, inputs=(weight,)), operation("b", "layer", count=50))
    traced = TracedModel("m", {"platform": "cpu"}, modules)
    assert _num_layers(replace(traced, operations=(*modules, *engine_operations(traced, ())))) == 3


def test_caches_without_heads_do_not_stop_the_engine(operation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that caches no keys and values, as an index of them, stands beside attention, which sizes the engine's cache."""
    asked: list[ServingConfig] = []

    def start(_model: object, serving: ServingConfig, _num_layers: int) -> SimpleNamespace:
        asked.append(serving)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(engine_profile, "start_engine", start)
    monkeypatch.setattr(engine_profile, "cache_room_bytes", lambda _platform: 1 << 40)
    weight = TracedTensor("bfloat16", (TracedDim(str(1 << 30), "config", 1 << 30),), is_parameter=True)
    attention = {"num_kv_heads": 64, "head_size": 128, "head_size_v": 128}
    modules = (
        operation("w", "layers.0.up", inputs=(weight,)),
        operation("a", "layers.0.attn", stateful=True, attributes=attention),
        operation("i", "layers.0.index", stateful=True, attributes={"kind": "IndexerCache", "num_kv_heads": None}),
    )
    traced = TracedModel("m", {"platform": "cpu"}, modules)
    traced = replace(traced, operations=(*modules, *engine_operations(traced, ())))
    with engine_profile._reduced_engine(ModelSource("m", Path()), traced, SERVING):
        assert asked[0].kv_cache_memory_bytes == 8 * (512 + 256) * 64 * 256 * 2


def test_a_task_lists_an_operation_once(operation: Make) -> None:
    """A batch that gives two placements one point has one operation to measure."""
    tasks = plan_tasks((operation("a", "q"), operation("a", "k")), SERVING, lambda _signature, _point: 0)
    assert all(len(task.missing) == 1 for task in tasks)


def test_the_order_of_work_is_mixed_and_the_same_each_time(operation: Make) -> None:
    """Tasks run pass by pass, each pass shuffled in a way that does not change from run to run."""
    tasks = plan_tasks((operation("a", "q"),), SERVING, lambda _signature, _point: 0)
    order = shuffled(tasks)
    assert order == shuffled(tasks) != list(tasks)
    assert sorted(order, key=tasks.index) == list(tasks)
    assert [task.number for task in order] == [task.number for task in tasks]


def test_other_kernels_are_refused(tmp_path: Path) -> None:
    """Records of kernels that the engine does not choose by itself would stand for those that it does."""
    store = Store.open(tmp_path / "db", "a")
    with pytest.raises(
        InvalidInputError, match=r"^--moe-backend: records are of the kernels that the engine chose; leave it out"
    ):
        profile(ModelSource("m", tmp_path), store, replace(SERVING, moe_backend="marlin"), dry_run=True)


def test_what_a_point_takes_holds_the_watch_beside_it(operation: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts go by it, and by what the device's speed took to tell, before the measurement and after."""

    class SlowWatch:
        """Takes a tenth of a second on either side."""

        def begin(self) -> None:
            """Take it."""
            time.sleep(0.1)

        def facts(self) -> dict[str, object]:
            """Take it again."""
            time.sleep(0.1)
            return {"others_cores": None, "drift": 0.0}

    piece = operation("a" * 32, "piece")
    runner = SimpleNamespace(running=lambda: nullcontext(SimpleNamespace(step=lambda: None)))
    monkeypatch.setattr(profiler_module, "BatchRunner", lambda *_: runner)
    profiler = object.__new__(Profiler)
    profiler._engine, profiler._environment, profiler._is_compiled = None, "e" * 32, True  # type: ignore[assignment]
    profiler._watch, profiler._store = SlowWatch(), SimpleNamespace(write=lambda *_: None)  # type: ignore[assignment]
    profiler._timer = SimpleNamespace(mark_timing="perf_counter", clocks=lambda: None)  # type: ignore[assignment]
    monkeypatch.setattr(profiler, "_compiled_times", lambda *_: {key_of(piece): [1000, 1000]})
    (record,) = profiler.measure(Task(0, Batch((1,), (16,)), (piece,)))
    assert float(str(record.attributes["wall_s"])) >= 0.2
