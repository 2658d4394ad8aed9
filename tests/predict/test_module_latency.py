from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import dooly
from dbstore import Environment, Record, Store
from dooly.catalog import MODULE, point_at, with_whole_module
from dooly.errors import InvalidInputError, MissingOperationError, OutOfDomainError, TraceError
from dooly.predict import ModuleLatency, load_module_latency
from dooly.predict._sizes_behind import sizes_behind
from dooly.tracing import TracedModel, evaluate_form, trace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import ModuleType

    from dooly.tracing import TracedOperation

ROOT = Path(__file__).parents[2]
SIZES = {"batch": (1, 2, 4, 8), "seq": (16, 64, 256)}
OVERHEAD_NS = 40_000


@pytest.fixture(scope="module")
def table(modules: ModuleType) -> TracedModel:
    """The operations of a small language model."""
    traced = trace(modules.Transformer().eval(), request_dims={"ids": ("batch", "seq")})
    traced(torch.randint(0, 100, (3, 5)))
    return traced.traced


def operation_ns(operation: TracedOperation, sizes: Mapping[str, int]) -> float:
    """Return what an operation takes by law: a fixed cost, its FLOPs and its bytes."""
    return float(5_000 + evaluate_form(operation.request_flops, sizes) / 20 + evaluate_form(operation.request_bytes, sizes) / 10)


def law_ns(table: TracedModel, sizes: Mapping[str, int]) -> float:
    """Return what a whole forward takes by law: 5 % more than its operations, and a constant."""
    return 1.05 * sum(op.count * operation_ns(op, sizes) for op in table.operations) + OVERHEAD_NS


def fill(
    path: Path,
    table: TracedModel,
    *environments: Environment,
    without: str = "",
    sizes: Mapping[str, tuple[int, ...]] = MappingProxyType(SIZES),
) -> Store:
    """Return a store with every operation of a module at all combinations of `sizes`, but for those of one module path."""
    store = Store.open(path, "a")
    for environment in environments:
        store.write_document("environments", environment.digest, environment.to_json())
        records = {}
        for operation in with_whole_module(table).operations:
            if without and operation.module == without:
                continue
            for values in product(*sizes.values()):
                at = dict(zip(sizes, values, strict=True))
                elapsed = law_ns(table, at) if operation.name == MODULE else operation_ns(operation, at)
                point = point_at(operation.request_dims, at)
                records[operation.signature, point] = Record(
                    operation.signature, environment.digest, point, np.full(3, round(elapsed))
                )
        store.write(*records.values())
    return store


@pytest.fixture(scope="module")
def place(environment: Environment) -> Environment:
    """Where the records were made."""
    return replace(environment, engine="torch", engine_version="2.13.0")


@pytest.fixture(scope="module")
def latency(table: TracedModel, place: Environment, tmp_path_factory: pytest.TempPathFactory) -> ModuleLatency:
    """The latency model of the small language model."""
    return load_module_latency(table, fill(tmp_path_factory.mktemp("module") / "db", table, place))


@pytest.mark.parametrize("sizes", [{"batch": 3, "seq": 50}, {"batch": 1, "seq": 200}, {"batch": 7, "seq": 30}], ids=str)
def test_a_forward_follows_the_laws(latency: ModuleLatency, table: TracedModel, sizes: dict[str, int]) -> None:
    """Sizes that were not measured are predicted within a few percent; operations and the rest add up."""
    step = latency(**sizes)
    assert step.seconds == pytest.approx(law_ns(table, sizes) / 1e9, rel=0.05)
    assert 0 <= step.uncertainty_s < 0.1 * step.seconds
    assert not step.extrapolated
    assert sum(step.breakdown_s.values()) == pytest.approx(step.seconds, rel=1e-9)
    ups = [op for op in table.operations if op.module == "layers.0.up"]
    expected_ns = sum(op.count * operation_ns(op, sizes) for op in ups)
    assert step.breakdown_s["layers.*.up"] == pytest.approx(expected_ns / 1e9, rel=0.05)
    assert step.breakdown_s["module"] == pytest.approx(
        (law_ns(table, sizes) - (law_ns(table, sizes) - OVERHEAD_NS) / 1.05) / 1e9, rel=0.3
    )


@pytest.mark.parametrize(
    ("sizes", "rule"),
    [
        ({"batch": 2}, "request dimension 'seq' is not given"),
        ({"batch": 2, "seq": 20, "time": 1}, "'time' is no request dimension of the module; it has "),
        *(
            (
                {"batch": 2, "seq": size},
                rf"^Transformer: request dimension 'seq' needs a size of at least 1, got {spelled}; give one",
            )
            for size, spelled in [("20", "'20'"), (0, "0"), (-1, "-1"), (20.5, "20.5"), (None, "None"), ((20,), r"\(20,\)")]
        ),
    ],
)
@pytest.mark.parametrize("extrapolate", [False, True])
def test_dimensions_must_be_known(
    latency: ModuleLatency,
    sizes: dict[str, Any],
    rule: str,
    extrapolate: bool,  # noqa: FBT001 - a case
) -> None:
    """A prediction needs each request dimension, and no other; each is one integer of at least 1."""
    with pytest.raises(InvalidInputError, match=rule) as caught:
        latency(**sizes, extrapolate=extrapolate)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"traced": torch.nn.Linear(2, 2)},
            "traced: Linear(in_fea...=2, bias=True) is no traced module; give dooly.trace(module), called once",
        ),
        ({"store": "db"}, "store: 'db' is no open store; give dbstore.Store.open(PATH), with mode 'a' to measure"),
        ({"environment": "cpu"}, "environment: 'cpu' is no dbstore.Environment; give one, or leave it out"),
    ],
)
def test_wrong_arguments_are_refused(table: TracedModel, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    """What is no traced module, no open store or no environment is named in one line."""
    arguments = {"traced": table, "store": Store.open(tmp_path / "db", "a")} | wrong
    with pytest.raises(InvalidInputError) as caught:
        load_module_latency(**arguments)
    assert str(caught.value) == f"dooly.load_module_latency: {message}"


def test_a_module_that_has_not_run_is_refused(modules: ModuleType, tmp_path: Path) -> None:
    """Without a trace there is nothing to predict."""
    with pytest.raises(TraceError, match="not traced yet"):
        load_module_latency(trace(modules.Pairs()), Store.open(tmp_path / "db", "a"))


@pytest.mark.parametrize("sizes", [{"batch": 9, "seq": 50}, {"batch": 2, "seq": 300}, {"batch": 2, "seq": 8}], ids=str)
def test_outside_what_was_measured(latency: ModuleLatency, table: TracedModel, sizes: dict[str, int]) -> None:
    """Sizes beyond the measured ones, above or below, are refused with what to do, or flagged where asked."""
    with pytest.raises(OutOfDomainError, match=r"outside of what was measured .*; call dooly\.profile_module") as caught:
        latency(**sizes)
    assert "batch from 1 to 8" in str(caught.value)
    assert "\n" not in str(caught.value)
    step = latency(**sizes, extrapolate=True)
    assert step.extrapolated
    assert step.provenance == pytest.approx({"measured": 0.0, "family": 0.0, "estimated": 1.0})
    assert step.uncertainty_s >= 0.5 * step.seconds
    assert step.seconds == pytest.approx(law_ns(table, sizes) / 1e9, rel=0.15)


@pytest.mark.parametrize("module", ["layers.0.up", "head", ""])
def test_a_missing_operation_is_named(table: TracedModel, place: Environment, tmp_path: Path, module: str) -> None:
    """The error names the operation that the store lacks and the call that measures it, in one line."""
    store = fill(tmp_path / "db", table, place, without=module or "no such module")
    if not module:
        table = replace(table, operations=table.operations[:-1])  # another module, whose operations are all there
    with pytest.raises(MissingOperationError, match=r"call dooly\.profile_module\(traced, store, request_dims=") as caught:
        load_module_latency(table, store)
    assert (module or "module") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_store_names_what_it_lacks(table: TracedModel, tmp_path: Path) -> None:
    """Without any measurement the operations are named."""
    with pytest.raises(MissingOperationError, match=r"Transformer: the store lacks embed, layers\.0\.norm1, "):
        load_module_latency(table, Store.open(tmp_path / "db", "a"))


def test_a_disturbed_store_is_told_at_loading(
    table: TracedModel, place: Environment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Measurements that other work disturbed each time are counted in one line, with what to do; calm ones stay quiet."""
    calm, spoiled = fill(tmp_path / "calm", table, place), Store.open(tmp_path / "spoiled", "a")
    load_module_latency(table, calm)
    assert not caplog.messages
    spoiled.write_document("environments", place.digest, place.to_json())
    for operation in with_whole_module(table).operations:
        records = calm.read(operation.signature, place.digest)
        spoiled.write(*(replace(record, attributes={"spoiled": True}) for record in records))
    load_module_latency(table, spoiled)
    (message,) = caplog.messages
    assert re.fullmatch(
        r"Transformer: other work .* disturbed (\d+) of \1 .* may be far off; measure into a new store .*", message
    )


def test_one_of_several_environments_is_chosen(table: TracedModel, place: Environment, tmp_path: Path) -> None:
    """A store of two environments does not tell which is meant; giving one does."""
    other = replace(place, num_threads=7)
    store = fill(tmp_path / "db", table, place, other)
    with pytest.raises(InvalidInputError, match=r"several environments .* 7 threads.*; give one of them as environment"):
        load_module_latency(table, store)
    assert load_module_latency(table, store, other).environment == other


def test_sizes_behind_products() -> None:
    """Where an operation sees a product alone, any sizes that give it do."""
    sizes = sizes_behind(("batch*seq",), np.array([[12.0], [32.0]]))
    assert evaluate_form("batch*seq", sizes).tolist() == [12.0, 32.0]
    sizes = sizes_behind(("batch*seq", "seq"), np.array([[12.0, 4.0], [32.0, 2.0]]))
    assert (sizes["seq"].tolist(), sizes["batch"].tolist()) == ([4.0, 2.0], [3.0, 16.0])
    sizes = sizes_behind(("past + seq", "3*seq"), np.array([[12.0, 6.0]]))
    assert (sizes["seq"].tolist(), sizes["past"].tolist()) == ([2.0], [10.0])


@pytest.mark.parametrize("dim", ["n**2", "n*(n + 1)/2", "floor(n/2)", "n**2 + n*past", "-past + n", "n + past - 1"])
def test_sizes_behind_an_expression(dim: str) -> None:
    """Where an operation sees an expression of whatever form, sizes are found that give its values."""
    values = [1.0, 6.0, 15.0, 1e6]
    sizes = sizes_behind((dim,), np.array([[value] for value in values]))
    assert evaluate_form(dim, sizes) == pytest.approx(values, rel=1e-6)


def test_an_expression_without_sizes_behind_is_refused() -> None:
    """Values that no size gives are an error that names the expression and the value, in one line."""
    with pytest.raises(InvalidInputError, match=r"^request dimension 2\*floor\(n/2\): no size of n gives .* value 5; pass .*$"):
        sizes_behind(("2*floor(n/2)",), np.array([[4.0], [5.0]]))


def test_operations_over_a_square_follow_their_law(place: Environment, tmp_path: Path) -> None:
    """An operation over the square of a request dimension is predicted at sizes between the measured ones."""

    class Every(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.proj(x[:, None] + x)
            return y

    traced = trace(Every(), request_dims={"x": ("batch", None)})
    traced(torch.randn(3, 64))
    assert ("batch**2",) in {op.request_dims for op in traced.traced.operations}
    store = fill(tmp_path / "db", traced.traced, place, sizes={"batch": (4, 16, 64, 256)})
    for batch in (8, 100):
        step = load_module_latency(traced, store)(batch=batch)
        assert step.seconds == pytest.approx(law_ns(traced.traced, {"batch": batch}) / 1e9, rel=0.05)


def test_an_uncertainty_holds_the_errors_of_operations(place: Environment, tmp_path: Path) -> None:
    """A forward is as uncertain as its operations: the sizes that it was fitted at are those that they were fitted at."""
    traced = trace(torch.nn.Linear(64, 64), request_dims={"input": ("batch",)})
    traced(torch.randn(3, 64))
    measured, ratios = [], []
    for seed in range(3):
        apart = np.exp(0.2 * np.random.default_rng(seed).standard_normal(2049))  # a kernel at one size and not the next
        batches = np.unique(np.rint(np.geomspace(1, 2048, 24)).astype(int))
        store = Store.open(tmp_path / f"{seed}", "a")
        store.write_document("environments", place.digest, place.to_json())
        for operation in with_whole_module(traced.traced).operations:
            beyond_ns = 5_000 if operation.name == MODULE else 0
            store.write(
                *(
                    Record(
                        *(operation.signature, place.digest, point_at(operation.request_dims, {"batch": int(batch)})),
                        np.full(3, round((20_000 + 300 * batch) * apart[batch]) + beyond_ns),
                    )
                    for batch in batches
                )
            )
        latency = load_module_latency(traced, store)
        for batch in np.setdiff1d(np.arange(2, 2048, 7), batches):
            step, true_s = latency(batch=int(batch)), ((20_000 + 300 * batch) * apart[batch] + 5_000) / 1e9
            ratios.append(step.uncertainty_s / step.seconds)
            measured.append(abs(step.seconds / true_s - 1))
    assert 0.8 < np.mean(ratios) / np.median(measured) < 1.3


def test_a_module_without_request_dimensions(tmp_path: Path) -> None:
    """A module that always computes the same has one point, and needs no dimension."""

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(8, 8))

        def forward(self) -> torch.Tensor:
            return self.weight @ self.weight

    traced = trace(Constant())
    traced()
    store = Store.open(tmp_path / "db", "a")
    assert dooly.profile_module(traced, store, request_dims={}).num_left == 0
    assert dooly.load_module_latency(traced, store)().seconds > 0


def test_predicting_loads_no_torch(table: TracedModel, place: Environment, tmp_path: Path) -> None:
    """The table and the store are enough to predict; torch is not loaded."""
    fill(tmp_path / "db", table, place)
    (tmp_path / "trace.json").write_text(json.dumps(table.to_json()))
    code = (
        "import json, sys; from pathlib import Path; import dooly; from dbstore import Store;"
        f"table = dooly.tracing.TracedModel.from_json(json.loads(Path({str(tmp_path / 'trace.json')!r}).read_text()));"
        f"latency = dooly.load_module_latency(table, Store.open({str(tmp_path / 'db')!r}));"
        "print(latency(batch=3, seq=50).seconds > 0, *({'torch', 'vllm'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: several wait busily for each other where the machine has other work."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(number)


@pytest.mark.usefixtures("one_thread")
def test_from_a_real_module_to_its_latency(modules: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real language model is traced and measured on this machine, and predicted between what was measured."""
    traced = dooly.trace(modules.Transformer(hidden=64).eval(), request_dims={"ids": ("batch", "seq")})
    traced(torch.randint(0, 100, (2, 8)))
    monkeypatch.setattr("dooly.measure.module._profiler._BUDGET_NS", 50_000_000)
    store = Store.open(tmp_path / "db", "a")
    result = dooly.profile_module(traced, store, request_dims={"batch": (1, 4), "seq": (8, 128)})
    assert result.num_left == 0
    latency = dooly.load_module_latency(traced, store)
    small, middle, large = (latency(batch=b, seq=s) for b, s in ((1, 8), (2, 64), (4, 128)))
    assert small.seconds < middle.seconds < large.seconds
    assert set(middle.breakdown_s) >= {"embed", "layers.*.up", "layers.*", "head", "module"}
