"""Adaptive sweeps over an engine's batches, on operations whose latencies are laws: what is measured, and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import Environment, JsonObject, Record, Store
from dooly.batch import Batch
from dooly.catalog import measurement_batches, point_of, write_described, write_traced
from dooly.engines import ModelSource, ServingConfig
from dooly.measure import PASSES
from dooly.measure._adaptive_plan import AdaptivePlan, Forecast
from dooly.measure._passes import num_checked
from dooly.measure._tasks import InfeasibleBatchError, infeasible_record, record_of, run_tasks
from dooly.measure.engine._adaptive import adaptive_plan, corners, seconds_a_record
from dooly.predict import BatchArrays
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dooly.measure.engine._profiler import Task
    from dooly.tracing import TracedOperation

    Make = Callable[..., TracedOperation]

SERVING = ServingConfig(max_model_len=1024, max_num_batched_tokens=1024, max_num_seqs=32)


@dataclass
class _Laws:
    """Measures tasks by a law: a constant and a nanosecond a byte, with a bend that all operations share."""

    store: Store
    environment: str
    refuses: Callable[[Batch], bool] = lambda _batch: False
    disturbed: Callable[[int], bool] = lambda _number: False
    rough: float = 0.0
    """How far points of one operation lie from the law, relative."""
    drift: float = 0.0
    """By how much a pass takes longer than the one before."""
    tasks: list[Task] = field(default_factory=list)

    def measure(self, task: Task) -> Sequence[Record]:
        """Take what the law says."""
        disturbed = self.disturbed(len(self.tasks))
        self.tasks.append(task)
        if self.refuses(task.batch):
            raise InfeasibleBatchError("batch: too large")
        records = []
        for operation in task.missing:
            width = operation.family_numbers[0] if operation.family_numbers else 1.0
            tokens = task.batch.num_tokens
            took = (5000 + width * tokens * (1 + 0.2 * np.tanh(np.log(tokens) - 4))) * (1 + self.drift) ** task.number
            took *= 1 + self.rough * np.sin(37 * tokens)
            facts = {"others_cores": 0.0, "drift": float(disturbed), "wall_s": 1e-3 * tokens, "pass": task.number}
            facts["order"] = len(self.tasks)
            key = (operation.signature, self.environment)
            records.append(record_of(key, point_of(operation, task.batch), [round(took * (1 + 2 * disturbed))] * 3, facts))
        self.store.write(*records)
        return records

    def give_up(self, task: Task, reason: str) -> Sequence[Record]:
        """Keep the reason."""
        keys = [((op.signature, self.environment), point_of(op, task.batch)) for op in task.missing]
        records = [infeasible_record(key, point, task.number, reason) for key, point in keys]
        self.store.write(*records)
        return records

    def compact(self) -> None:
        """Leave the store as it is."""


@pytest.fixture
def member(operation: Make) -> Callable[[float], TracedOperation]:
    """Return what makes an operation of one family, by its width."""

    def make(width: float) -> TracedOperation:
        signature = f"{int(width):032x}"
        return operation(
            signature, f"layers.0.w{int(width)}", request_bytes=f"{width}*num_tokens", family="f" * 32, family_numbers=(width,)
        )

    return make


@pytest.fixture(scope="module")
def environment() -> Environment:
    """Where everything was measured."""
    facts = {
        "device": "a CPU",
        "device_kind": "cpu",
        "driver": "6",
        "torch_version": "2",
        "engine": "vllm",
        "engine_version": "0",
    }
    more = {"attention_backend": "CPU_ATTN", "dtype": "bfloat16", "kv_cache_dtype": "auto", "block_size": 16}
    return Environment(**facts, **more, execution_mode="eager", quantization=None, num_threads=2)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, environment: Environment) -> Store:
    """A store of nothing but the environment."""
    found = Store.open(tmp_path / "db", "a")
    found.write_document("environments", environment.digest, environment.to_json())
    return found


def _profile(laws: _Laws, operations: Sequence[TracedOperation], target: float = 0.03) -> tuple[Record, ...]:
    plan = adaptive_plan(tuple(operations), SERVING, laws.store, laws.environment, target)
    return run_tasks(laws, plan, None, lambda *_: None)[0]


def _checked(laws: _Laws, operation: TracedOperation) -> AdaptivePlan[Task]:
    """Measure an operation until its level is told, and return the plan of that."""
    plan = adaptive_plan((operation,), SERVING, laws.store, laws.environment, 0.03)
    while (task := plan.next()) is not None:
        plan.told(task, laws.measure(task))
        if task.number == 1 and not plan._later:
            break
    return plan


def _num_points(operation: TracedOperation) -> int:
    return len({point_of(operation, batch) for batch in measurement_batches(SERVING)})


@pytest.mark.parametrize("drift", [0.0, 0.02, 0.05], ids=["calm", "within the target", "beyond the target"])
def test_a_sweep_ends_early_and_is_measured_in_every_pass_where_its_level_moves(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment, drift: float
) -> None:
    """A smooth operation takes a fraction of its grid, the corners among it; a few points twice, or all of them three times."""
    operation = member(64.0)
    records = _profile(_Laws(store, environment.digest, drift=drift), [operation])
    counts = Counter(JsonObject(record.point) for record in records)
    if drift > 0.03:
        assert set(counts.values()) == {PASSES}
    else:
        assert Counter(counts.values()) == {1: len(counts) - num_checked(len(counts)), 2: num_checked(len(counts))}
    assert 3 <= len(counts) < _num_points(operation) / 2
    assert {JsonObject({"d0": 1}), JsonObject({"d0": 1024})} <= set(counts)


def test_what_is_done_is_not_done_again_unless_more_is_asked_for(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run measures nothing; one with a tighter target goes on from there, where no slack ends it."""
    laws = _Laws(store, environment.digest, rough=0.01)
    first = _profile(laws, [member(64.0)])
    plan = adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03)
    assert plan.num_left() == 0
    assert _profile(laws, [member(64.0)]) == ()
    monkeypatch.setattr("dooly.measure._sampler._RUN_SLACK", 0.0)
    more = _profile(laws, [member(64.0)], target=0.001)
    assert first
    new = {JsonObject(r.point) for r in more if r.attributes["pass"] == 0}
    assert new
    assert not {JsonObject(r.point) for r in first} & new


def test_a_run_that_ends_behind_its_checks_tells_what_is_left(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Of an operation whose level moved, all points in all passes, as the next run's plan tells it."""
    left = _checked(_Laws(store, environment.digest, drift=0.1), member(64.0)).num_left()
    num_points = len({JsonObject(r.point) for r in store.read(member(64.0).signature, environment.digest)})
    assert left == PASSES * num_points - num_points - num_checked(num_points)
    assert adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03).num_left() == left


def test_levels_are_seen_before_anything_is_measured_a_third_time(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Beside an operation that moved and lacks passes, a new one is checked first; no pass is left out, and none comes twice."""
    laws = _Laws(store, environment.digest, drift=0.1)
    _checked(laws, member(64.0))
    first = len(laws.tasks)
    _profile(laws, [member(64.0), member(256.0)])
    later = [task for task in laws.tasks[first:] if task.number > 0]
    new = [place for place, task in enumerate(later) if member(256.0) in task.missing and task.number == 1]
    assert all(task.number == 1 for task in later[: new[0] + 1])
    for width in (64.0, 256.0):
        records = store.read(member(width).signature, environment.digest)
        numbers = Counter((JsonObject(record.point), record.attributes["pass"]) for record in records)
        assert set(numbers.values()) == {1}
        assert {number for _, number in numbers} == set(range(PASSES))


def test_a_second_pass_that_does_not_bear_out_the_checks_ends_it(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Three checks that are 5 % slower, beside seven points that are not, cost one pass and no third."""
    laws = _Laws(store, environment.digest, drift=0.05)
    assert _checked(laws, member(64.0)).num_left() > 0
    laws.drift = 0.0
    _profile(laws, [member(64.0)])
    counts = Counter(JsonObject(r.point) for r in store.read(member(64.0).signature, environment.digest))
    assert set(counts.values()) == {2}


def test_a_run_that_was_cut_off_is_finished_by_the_next(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """After a budget that ends within the first pass, the rest is measured, and nothing four times, though its level moves."""
    laws = _Laws(store, environment.digest, drift=0.1)
    plan = adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03)
    for _ in range(3):
        task = plan.next()
        assert task is not None
        plan.told(task, laws.measure(task))
    assert plan.num_left() > 0
    _profile(laws, [member(64.0)])
    counts = Counter(JsonObject(r.point) for r in store.read(member(64.0).signature, environment.digest))
    assert set(counts.values()) == {PASSES}


@pytest.fixture
def laws(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment, tmp_path: Path
) -> tuple[_Laws, list[TracedOperation]]:
    """What measures into a store that knows a family by four members, and these."""
    found, known = _Laws(store, environment.digest), [member(width) for width in (16.0, 64.0, 256.0, 1024.0)]
    traced = TracedModel("known", {"platform": "cpu"}, tuple(known))
    write_described(store, environment, traced)
    folder = tmp_path / "known"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    write_traced(store, ModelSource("known", folder), SERVING, traced, environment)
    _profile(found, known)
    return found, known


def test_another_model_of_known_families_needs_less(
    member: Callable[[float], TracedOperation],
    laws: tuple[_Laws, list[TracedOperation]],
    environment: Environment,
    tmp_path: Path,
) -> None:
    """Of a family that the store knows by four members, a fifth takes fewer points than it does in an empty store."""
    beside = len(_profile(laws[0], [member(128.0)]))
    store_alone = Store.open(tmp_path / "alone", "a")
    store_alone.write_document("environments", environment.digest, environment.to_json())
    alone = len(_profile(_Laws(store_alone, environment.digest), [member(128.0)]))
    assert beside < alone


def test_corners_are_measured_of_what_bounds_a_model_and_of_what_no_relative_tells(
    member: Callable[[float], TracedOperation], laws: tuple[_Laws, list[TracedOperation]], tmp_path: Path
) -> None:
    """The member of a known family waits until its sweep has ended; state that sees contexts, and a strange family, do not."""
    seeing = replace(member(3.0), signature="c" * 32, family="c" * 32, stateful=True)
    strange, known = replace(member(4.0), family="e" * 32), member(128.0)
    plan = adaptive_plan((seeing, strange, known), SERVING, laws[0].store, laws[0].environment, 0.03)
    batches = measurement_batches(SERVING)
    tasks = [plan.next() for _ in corners(BatchArrays.of(batches), batches)]
    assert all(task is not None and known not in task.missing for task in tasks)
    assert {op.signature for task in tasks if task is not None for op in task.missing} == {seeing.signature, strange.signature}
    alone = adaptive_plan((known,), SERVING, Store.open(tmp_path / "nothing", "a"), laws[0].environment, 0.03).next()
    assert alone is not None
    assert alone.missing == (known,)


def test_one_operation_in_two_places_is_measured_once_at_a_point(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Over tokens here and over requests there: where a batch has as many of either, one record serves both."""
    by_tokens = member(64.0)
    by_reqs = replace(by_tokens, stage="logits", request_dims=("num_reqs",), request_bytes="64.0*num_reqs")
    laws = _Laws(store, environment.digest)
    records = _profile(laws, [by_tokens, by_reqs], target=0.005)
    assert records
    passes = Counter((JsonObject(record.point), record.attributes["pass"]) for record in records)
    assert set(passes.values()) == {1}


def test_a_forecast_tells_what_is_known_and_what_is_wanted(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Of an empty store the whole grid is wanted; of a measured operation nothing; of a new one beside it some of its grid."""

    def forecast(*operations: TracedOperation) -> Forecast:
        return adaptive_plan(operations, SERVING, store, environment.digest, 0.03).forecast()

    new = member(64.0)
    assert forecast(new) == Forecast(0, 0, 1, PASSES * _num_points(new), is_most=True)
    _profile(_Laws(store, environment.digest), [new])
    assert forecast(new) == Forecast(1, 0, 0, 0)
    beside = forecast(new, member(96.0))
    assert beside.num_known == 1
    assert beside.num_by_family + beside.num_missing == 1
    assert 0 < beside.num_wanted < PASSES * _num_points(new)
    strange = forecast(new, replace(member(96.0), family="e" * 32))
    assert 0 < strange.num_wanted < _num_points(new)
    assert seconds_a_record(store, {environment.digest}) == pytest.approx(
        np.mean([float(str(r.attributes["wall_s"])) for r in store.read(new.signature, environment.digest)])
    )
    assert seconds_a_record(store, {"0" * 32}) is None


def test_a_batch_that_cannot_be_realised_is_left_out_and_the_sweep_goes_on(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Points of infeasible batches are recorded as such once, tried no more, and the others are measured."""
    records = _profile(_Laws(store, environment.digest, refuses=lambda batch: batch.num_tokens >= 256), [member(64.0)])
    refused = Counter(JsonObject(r.point) for r in records if r.infeasible is not None)
    assert refused
    assert set(refused.values()) == {1}
    assert len({r.point["d0"] for r in records if r.infeasible is None}) >= 3
    assert adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03).num_left() == 0


def test_what_a_refused_batch_shares_with_others_is_measured_at_those(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Of a cache too small for the longest contexts: attention there is infeasible, products of as many rows are not."""

    def refuses(batch: Batch) -> bool:
        return sum(batch.num_computed_tokens) > 4096

    attention = replace(
        member(3.0),
        signature="c" * 32,
        family="c" * 32,
        stateful=True,
        request_dims=("num_tokens", "kv_tokens", "query_key_pairs"),
    )
    logits = replace(member(16.0), stage="logits", request_dims=("num_reqs",), request_bytes="16.0*num_reqs")
    operations = (member(64.0), logits, attention)
    laws = _Laws(store, environment.digest, refuses=refuses)
    _profile(laws, operations)
    refused = {batch: refuses(batch) for batch in measurement_batches(SERVING)}
    for operation in operations:
        records = store.read(operation.signature, environment.digest)
        infeasible = {JsonObject(record.point) for record in records if record.infeasible is not None}
        feasible = {point_of(operation, batch) for batch, is_refused in refused.items() if not is_refused}
        assert not infeasible & feasible
        assert infeasible or operation is not attention
    assert point_of(logits, Batch((1,) * 32, (1,) * 32)) in {
        JsonObject(r.point) for r in store.read(logits.signature, environment.digest)
    }
    asked = Counter(task.batch for task in laws.tasks if refuses(task.batch))
    assert set(asked.values()) == {1}
    assert adaptive_plan(operations, SERVING, store, environment.digest, 0.03).num_left() == 0


def test_what_was_measured_beyond_the_limits_is_left_alone(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """A store that was filled at larger limits, infeasible batches among them, serves a profile at smaller ones."""
    laws = _Laws(store, environment.digest, refuses=lambda batch: batch.num_tokens > 800)
    _profile(laws, [member(64.0)])
    smaller = replace(SERVING, max_model_len=256, max_num_batched_tokens=256, max_num_seqs=8)
    before = len(laws.tasks)
    run_tasks(laws, adaptive_plan((member(64.0),), smaller, store, environment.digest, 0.03), None, lambda *_: None)
    assert all(task.batch.num_tokens <= 256 for task in laws.tasks[before:])
    assert adaptive_plan((member(64.0),), smaller, store, environment.digest, 0.03).num_left() == 0


def test_corners_bound_all_batches() -> None:
    """No batch has more tokens, requests, positions of one request, cached positions or query-key pairs than the corners."""
    batches = measurement_batches(SERVING)
    chosen = [batches[place] for place in corners(BatchArrays.of(batches), batches)]

    def largest(of: Sequence[Batch]) -> list[float]:
        arrays = BatchArrays.of(of)
        work = arrays.attention(None)
        sizes = (arrays.num_tokens, arrays.num_reqs, arrays.new + arrays.computed, work.decode_kv_tokens, work.prefill_pairs)
        return [float(values.max()) for values in sizes]

    assert largest(chosen) == largest(batches)
    assert min(b.num_tokens for b in chosen) == 1


@pytest.mark.parametrize("limit", [1, 2, 64, 1024, 8192])
def test_corners_leave_no_wide_gap(limit: int) -> None:
    """Between their numbers of tokens lies less than a factor of four, unless the grid itself has none there."""
    batches = measurement_batches(
        ServingConfig(max_model_len=max(2, limit), max_num_batched_tokens=limit, max_num_seqs=min(limit, 32))
    )
    places = corners(BatchArrays.of(batches), batches)
    assert len(set(places)) == len(places)
    sizes = {batch.num_tokens for batch in batches}
    chosen = sorted({batches[place].num_tokens for place in places})
    assert (chosen[0], chosen[-1]) == (min(sizes), max(sizes))
    for below, above in pairwise(chosen):
        assert above < 4 * below or not any(below < size < above for size in sizes)


@pytest.mark.parametrize("moments", [{0, 1}, {4}, {2, 5, 6}], ids=["corners", "one", "several"])
def test_what_was_disturbed_decides_nothing(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment, tmp_path: Path, moments: set[int]
) -> None:
    """Values three times as large, each repeated undisturbed, end a sweep within the target, four points later at most."""
    calm_store = Store.open(tmp_path / "calm", "a")
    calm_store.write_document("environments", environment.digest, environment.to_json())
    errors, points = [], []
    for laws in (
        _Laws(calm_store, environment.digest),
        _Laws(store, environment.digest, disturbed=lambda number: number in moments),
    ):
        plan = adaptive_plan((member(64.0),), SERVING, laws.store, environment.digest, 0.03)
        records, _ = run_tasks(laws, plan, None, lambda *_: None)
        assert not any(record.attributes["spoiled"] for record in records)
        assert plan.num_left() == 0
        assert plan.error is not None
        errors.append(plan.error)
        points.append({JsonObject(record.point) for record in records})
    assert errors[1] <= 0.03
    assert len(points[1]) <= len(points[0]) + 4
    assert adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03).num_left() == 0


@pytest.mark.parametrize(("first", "num_points"), [(0, 1), (3, 2)], ids=["a corner", "later, two points of one operation"])
def test_what_waits_to_be_measured_again_is_not_proposed_meanwhile(  # noqa: PLR0913, PLR0917 - fixtures
    member: Callable[[float], TracedOperation],
    store: Store,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    first: int,
    num_points: int,
) -> None:
    """Nor is it at another corner; an operation over tokens here and over requests there may have two points in one batch."""
    monkeypatch.setattr("dooly.measure._sampler._RUN_SLACK", 0.0)  # the sweep goes on for long
    by_tokens = member(64.0)
    by_reqs = replace(by_tokens, stage="logits", request_dims=("num_reqs",), request_bytes="64.0*num_reqs")
    laws = _Laws(store, environment.digest)
    plan = adaptive_plan((by_tokens, by_reqs), SERVING, store, environment.digest, 0.0005)
    waiting: set[JsonObject] = set()
    num_tasks = 0
    while (task := plan.next()) is not None and task.number == 0:
        points = {point_of(operation, task.batch) for operation in task.missing}
        assert not points & waiting
        if num_tasks >= first and len(points) == num_points and not waiting:
            plan.delayed(task)
            waiting = points
        else:
            plan.told(task, laws.measure(task))
        num_tasks += 1
    assert waiting
    assert num_tasks > first + 2


def test_a_device_that_stays_disturbed_is_swept_all_the_same(
    member: Callable[[float], TracedOperation], store: Store, environment: Environment
) -> None:
    """Its sweep ends before the grid does; later calls measure points anew until enough of them have had twice their passes."""
    laws = _Laws(store, environment.digest, disturbed=lambda _number: True)
    records = _profile(laws, [member(64.0)])
    assert all(record.attributes["spoiled"] for record in records)
    assert len({JsonObject(record.point) for record in records}) < _num_points(member(64.0)) / 2
    assert adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03).num_left() > 0
    for _ in range(8):
        _profile(laws, [member(64.0)])
    assert adaptive_plan((member(64.0),), SERVING, store, environment.digest, 0.03).num_left() == 0
    counts = Counter(JsonObject(record.point) for record in store.read(member(64.0).signature, environment.digest))
    assert min(counts.values()) > 1
    assert 2 * PASSES <= max(counts.values()) < 4 * PASSES
