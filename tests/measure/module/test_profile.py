from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dbstore import JsonObject, Store
from dooly.catalog import PASSES, describe_module_environment, point_at, with_whole_module
from dooly.engines import find_model
from dooly.errors import InvalidInputError
from dooly.measure import profile, profile_module
from dooly.measure.module._profile import plan_module_tasks
from dooly.measure.module._profiler import module_copies
from dooly.measure.timers import Watch
from dooly.tracing import Traced, TracedModel, trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import ModuleType

SIZES = {"batch": (1, 2), "seq": (4, 6)}
NO_TARGET = "is no relative error from 0 to 1; 0.03 is 3 %, and 0 measures the whole grid"


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Spend little on each point: what is tested is not how steady the times are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dooly.measure.module._profiler._BUDGET_NS", 10_000_000)
        patch.setattr("dooly.measure._tasks.is_spoiled", lambda _facts: False)  # what else runs here would have points again
        yield


@pytest.fixture(scope="module")
def traced(modules: ModuleType) -> Traced:
    """A traced language model."""
    found = trace(modules.Transformer(num_layers=1).eval(), request_dims={"ids": ("batch", "seq")})
    found(torch.randint(0, 100, (3, 5)))
    return found


@pytest.fixture(scope="module")
def profiled(traced: Traced, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the language model measured at `SIZES`."""
    store = Store.open(tmp_path_factory.mktemp("profiled") / "db", "a")
    result = profile_module(traced, store, request_dims=SIZES)
    assert result.num_measured == result.num_points > 0
    assert result.num_left == 0
    return store


def test_every_operation_has_its_points(traced: Traced, profiled: Store) -> None:
    """Each operation and the whole forward have a record a pass at each of their points, with raw samples."""
    environment = describe_module_environment(traced.module)
    for operation in with_whole_module(traced.traced).operations:
        records = profiled.read(operation.signature, environment.digest)
        passes: dict[Any, list[Any]] = {}
        for record in records:
            assert record.infeasible is None
            assert len(record.samples_ns) > 1
            assert record.median_ns > 0
            passes.setdefault(record.point, []).append(record.attributes["pass"])
        assert all(set(found) == set(range(PASSES)) for found in passes.values())  # a disturbed one is there once more
        assert len(passes) in {3, 4}  # 2 and 3 values of the two dimensions, or 3 and 4 of their products


def test_an_adaptive_sweep_leaves_combinations_out(traced: Traced, tmp_path: Path) -> None:
    """With a target that any machine meets few of fifty combinations are run, the smallest and largest among them."""
    store, sizes = Store.open(tmp_path / "db", "a"), {"batch": (1, 2, 3, 4, 6), "seq": (2, 3, 4, 5, 6, 7, 8, 10, 12, 16)}
    result = profile_module(traced, store, request_dims=sizes, target_error=1.0)
    assert 0 < result.num_measured < result.num_points / 2
    assert result.num_left == 0
    assert result.expected_error is not None
    assert result.known_least is not None
    assert result.least_floor is not None
    assert 0 <= result.least_floor <= result.known_least[1]
    environment = describe_module_environment(traced.module).digest
    whole = with_whole_module(traced.traced).operations[-1]
    counts = Counter(JsonObject(record.point) for record in store.read(whole.signature, environment))
    ends = ({"batch": 1, "seq": 2}, {"batch": 6, "seq": 16})
    assert {point_at(whole.request_dims, sizes) for sizes in ends} <= set(counts)
    assert sum(count > 1 for count in counts.values()) >= 3  # whether its level stands


def test_what_is_there_is_not_measured_again(traced: Traced, profiled: Store) -> None:
    """A second run measures nothing, and one with another size only what that adds."""
    again = profile_module(traced, profiled, request_dims=SIZES)
    assert (again.num_measured, again.num_left) == (0, 0)
    wider = profile_module(traced, profiled, request_dims={**SIZES, "seq": (4, 9)})
    assert 0 < wider.num_measured <= wider.num_points / 2


def test_another_module_measures_only_what_is_its_own(modules: ModuleType, profiled: Store) -> None:
    """A deeper model of the same layers shares every operation, whatever it calls its dimensions; its whole forward is new."""
    deeper = trace(modules.Transformer(num_layers=2).eval(), request_dims={"ids": ("requests", "tokens")})
    deeper(torch.randint(0, 100, (3, 5)))
    result = profile_module(deeper, profiled, request_dims={"requests": SIZES["batch"], "tokens": SIZES["seq"]})
    assert result.num_measured == PASSES * 4
    assert result.num_points > result.num_measured


def test_an_interrupted_run_loses_nothing(modules: ModuleType, tmp_path: Path) -> None:
    """What was measured before an interruption is in the store, and the next run measures the rest."""
    traced = trace(modules.Pairs(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 8))
    store = Store.open(tmp_path / "db", "a")

    def interrupt(done: int, _total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_module(traced, store, request_dims={"rows": (2, 4, 8)}, progress=interrupt)
    assert store.info().num_records == 4
    rest = profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2, 4, 8)})
    assert rest.num_measured == rest.num_points - 4
    assert store.info().num_records >= rest.num_points  # and what was disturbed once more


def test_a_budget_ends_the_run(modules: ModuleType, tmp_path: Path) -> None:
    """Once the budget is spent no further point is begun, and the rest is counted."""
    traced = trace(modules.Pairs(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 8))
    result = profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2, 4)}, budget_s=0.0)
    assert (result.num_measured, result.num_left) == (0, result.num_points)


def test_out_of_memory_is_a_record(modules: ModuleType, tmp_path: Path) -> None:
    """A point that does not fit in memory is recorded as infeasible, counts as none measured, and the sweep goes on."""
    traced = trace(modules.Pairs(1), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 1))
    store = Store.open(tmp_path / "db", "a")
    result = profile_module(traced, store, request_dims={"rows": (4, 1 << 24)})
    assert (result.num_measured, result.num_infeasible, result.num_left) == (result.num_points // 2, 2, 0)
    (signature,) = {op.signature for op in traced.traced.operations}
    (environment,) = store.documents("environments")
    found = {record.point["d0"]: record.infeasible for record in store.read(signature, environment)}
    assert found[4] is None
    assert found[1 << 24].startswith("out of memory: ")


def test_what_a_point_takes_holds_the_watch_beside_it(
    modules: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forecasts go by it, and by what the device's speed took to tell, before the measurement and after."""
    monkeypatch.setattr(Watch, "begin", lambda _watch: time.sleep(0.2))
    monkeypatch.setattr(Watch, "facts", lambda _watch: time.sleep(0.2) or {"others_cores": None, "drift": 0.0})
    traced = trace(modules.Pairs(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 8))
    store = Store.open(tmp_path / "db", "a")
    result = profile_module(traced, store, request_dims={"rows": (4,)})
    records = [record for key in list(store.keys()) for record in store.read(*key)]
    assert len(records) == result.num_measured
    assert sum(record.attributes["wall_s"] for record in records) > PASSES * 0.4


def test_a_module_of_plain_tensors_is_copied(tmp_path: Path) -> None:
    """Of a tensor that is a plain attribute there are as many copies as of a parameter of its size."""

    class Scaled(torch.nn.Module):
        """Multiplies by a tensor that it registered nowhere."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(1 << 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Return the product."""
            return x * self.scale

    traced = trace(Scaled(), request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 1 << 16))
    assert len(module_copies(traced)) > 1
    assert profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2,)}).num_left == 0


def test_the_module_stays_as_it_was(modules: ModuleType, tmp_path: Path) -> None:
    """Buffers that the forward writes to, the random state and the gradient mode are afterwards what they were."""
    module = modules.Running().train()
    traced = trace(module, request_dims={"x": ("rows", None)})
    traced(torch.randn(3, 8))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    state = torch.get_rng_state()
    profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims={"rows": (2, 4)})
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"batch": (1,)}, "request dimension 'seq' is not given; give each of "),
        ({"batch": (1,), "seq": (1,), "time": (1,)}, "'time' is no request dimension of the module; it has "),
        ({"batch": (1,), "seq": ()}, r"request dimension 'seq' needs sizes of at least 1, got \(\)"),
        ({"batch": (0,), "seq": (1,)}, r"request dimension 'batch' needs sizes of at least 1, got \(0,\)"),
        ({"batch": (-1,), "seq": (1,)}, r"request dimension 'batch' needs sizes of at least 1, got \(-1,\)"),
        ({"batch": 4, "seq": (1,)}, r"'batch' needs sizes of at least 1, got 4; give a sequence of integers, as \(16, 64\)$"),
        ({"batch": "4", "seq": (1,)}, "request dimension 'batch' needs sizes of at least 1, got '4'; give "),
        ({"batch": (1.5,), "seq": (1,)}, r"request dimension 'batch' needs sizes of at least 1, got \(1.5,\); give "),
        ({"batch": (True,), "seq": (1,)}, r"request dimension 'batch' needs sizes of at least 1, got \(True,\); give "),
        ({"batch": torch.zeros(2, 2), "seq": (1,)}, r"'batch' needs sizes of at least 1, got tensor\(\[\[0., [^\n]*; give "),
        ({1: (1,)}, "1 is no request dimension of the module; it has "),
        ("batch", r"^Transformer: request_dims: 'batch' is no mapping; give sizes by name, as \{'seq': \(16, 64\)\}$"),
        (None, "request_dims: None is no mapping"),
    ],
)
def test_wrong_sizes_are_refused(traced: Traced, tmp_path: Path, sizes: Any, rule: str) -> None:  # noqa: ANN401 - wrong on purpose
    """Each request dimension is needed, no other, and each with sizes: integers of at least 1."""
    with pytest.raises(InvalidInputError, match=rule) as caught:
        profile_module(traced, Store.open(tmp_path / "db", "a"), request_dims=sizes)
    assert "\n" not in str(caught.value)


def test_sizes_may_be_any_integers(traced: Traced, profiled: Store) -> None:
    """Sizes of NumPy's integers, in an array or a range, are the same points as Python's."""
    sizes: Any = {"batch": iter(SIZES["batch"]), "seq": np.array(SIZES["seq"])}
    again = profile_module(traced, profiled, request_dims=sizes)
    assert again.num_points > 0
    assert (again.num_measured, again.num_left) == (0, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"traced": torch.nn.Linear(2, 2)},
            "traced: Linear(in_fea...=2, bias=True) is no traced module; give dooly.trace(module), called once",
        ),
        ({"store": "db"}, "store: 'db' is no open store; give dbstore.Store.open(PATH), with mode 'a' to measure"),
        ({"store": None}, "store: None is no open store; give dbstore.Store.open(PATH), with mode 'a' to measure"),
        ({"budget_s": "60"}, "budget_s: '60' is no number of seconds of at least 0; None measures everything"),
        ({"budget_s": -1}, "budget_s: -1 is no number of seconds of at least 0; None measures everything"),
        ({"target_error": float("nan")}, f"target_error: nan {NO_TARGET}"),
        ({"target_error": -0.03}, f"target_error: -0.03 {NO_TARGET}"),
        ({"target_error": 3}, f"target_error: 3 {NO_TARGET}"),
        ({"budget_s": float("nan")}, "budget_s: nan is no number of seconds of at least 0; None measures everything"),
        ({"progress": None}, "progress: None is not callable; give a function of (done, planned), or leave it out"),
    ],
)
def test_wrong_arguments_are_refused(traced: Traced, profiled: Store, wrong: dict[str, Any], message: str) -> None:
    """What is no traced module, no open store, no budget or no callback is named in one line."""
    arguments = {"traced": traced, "store": profiled, "request_dims": SIZES} | wrong
    with pytest.raises(InvalidInputError) as caught:
        profile_module(**arguments)
    assert str(caught.value) == f"dooly.profile_module: {message}"


def test_a_store_that_is_open_for_reading_is_refused_at_once(traced: Traced, tmp_path: Path) -> None:
    """Before a module is measured or an engine is started; a dry run needs no more."""
    Store.open(tmp_path / "db", "a")
    store, message = Store.open(tmp_path / "db"), "store: is open for reading; open it with mode='a' to write"
    with pytest.raises(InvalidInputError, match=message):
        profile_module(traced, store, request_dims=SIZES)
    with pytest.raises(InvalidInputError, match=message):
        profile(find_model("smollm2-135m"), store)


def test_copies_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module whose parameters fit the cache gets copies until all together exceed it twice; a larger one needs none."""
    module = torch.nn.Linear(64, 64, bias=False)
    traced = trace(module, request_dims={"input": ("rows", None)})
    traced(torch.randn(3, 64))
    weight_bytes = 64 * 64 * 4
    for cache, number in ((weight_bytes // 2, 1), (weight_bytes, 3), (10 * weight_bytes, 21), (10**9, 257)):
        monkeypatch.setattr("dooly.measure.module._profiler.last_level_cache_bytes", lambda cache=cache: cache)
        copies = module_copies(traced)
        assert len(copies) == number
        assert len({m.weight.data_ptr() for m in copies}) == number


def plan(combinations: list[Mapping[str, int]], records: Counter[tuple[str, JsonObject]]) -> list[tuple[int, list[str]]]:
    """Return the pass and the signatures of each task, for an operation over `batch*seq` and one over both."""

    def keys_at(sizes: Mapping[str, int]) -> list[tuple[str, JsonObject]]:
        flat = ("flat", JsonObject({"d0": sizes["batch"] * sizes["seq"]}))
        return [flat, flat, ("both", JsonObject({"d0": sizes["batch"], "d1": sizes["seq"]}))]

    tasks = plan_module_tasks(combinations, keys_at, lambda signature, point: records[signature, point])
    return [(task.number, [signature for signature, _ in task.missing]) for task in tasks]


def test_a_point_is_planned_once_a_pass() -> None:
    """Two combinations of one product measure the operation that sees the product only once."""
    combinations: list[Mapping[str, int]] = [{"batch": 2, "seq": 6}, {"batch": 3, "seq": 4}]
    assert plan(combinations, Counter()) == [(n, s) for n in range(PASSES) for s in (["flat", "both"], ["both"])]


def test_records_count_as_passes() -> None:
    """A point with a record needs one pass less."""
    known = Counter({("both", JsonObject({"d0": 2, "d1": 6})): PASSES, ("flat", JsonObject({"d0": 12})): 1})
    assert plan([{"batch": 2, "seq": 6}], known) == [(1, ["flat"]), (2, ["flat"])]


def test_the_whole_module_is_what_it_runs(traced: Traced) -> None:
    """The whole forward has the module's request dimensions, and an identity of its operations, free of names."""
    table = with_whole_module(traced.traced)
    whole = table.operations[-1]
    assert sorted(whole.request_dims) == ["batch", "seq"]
    text = str(traced.traced.to_json()).replace("batch", "rows").replace("seq", "columns")
    renamed = TracedModel.from_json(eval(text))  # noqa: S307 - what was just printed
    assert with_whole_module(renamed).operations[-1].signature == whole.signature
    fewer = TracedModel(table.model, table.environment, traced.traced.operations[1:])
    assert with_whole_module(fewer).operations[-1].signature != whole.signature


@pytest.mark.parametrize("wrapper", [torch.nn.Identity, torch.nn.Flatten], ids=["module calls", "views"])
def test_wrappers_belong_to_the_whole_forward(tmp_path: Path, wrapper: type[torch.nn.Module]) -> None:
    """Modules of equal operations share them; their whole forwards are their own, as module calls and views take time too."""
    wrapped = []
    for number in (1, 4):
        traced = trace(torch.nn.Sequential(*(wrapper() for _ in range(number)), torch.nn.Linear(8, 8)))
        traced(torch.randn(3, 8))
        wrapped.append(traced)
    store = Store.open(tmp_path / "db", "a")
    sizes: dict[str, tuple[int, ...]] = {"input.size(0)": (2, 4)}
    both = [profile_module(traced, store, request_dims=sizes) for traced in wrapped]
    assert both[0].num_measured == both[0].num_points == PASSES * 4
    assert both[1].num_measured == PASSES * 2


def test_what_the_forward_does_itself_belongs_to_the_whole() -> None:
    """Views that a forward takes between equal operations enter its identity."""

    class Views(torch.nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.proj, self.number = torch.nn.Linear(8, 8), number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(self.number):
                x = x.unsqueeze(0).squeeze(0)
            y: torch.Tensor = self.proj(x)
            return y

    found = []
    for number in (2, 2, 6):
        traced = trace(Views(number), request_dims={"x": ("rows", None)})
        traced(torch.randn(3, 8))
        found.append(with_whole_module(traced.traced).operations)
    assert [op.signature for op in found[0]] == [op.signature for op in found[1]]
    assert found[0][0].signature == found[2][0].signature
    assert found[0][-1].signature != found[2][-1].signature
