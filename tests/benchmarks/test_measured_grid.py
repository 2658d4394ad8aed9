"""A sweep that draws from a measured grid takes what the grid holds, and what it takes is told in full."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from dbstore import Environment, Store
from dooly.catalog import PASSES, STEP, latencies_of, measurement_batches, point_of, write_described, write_traced
from dooly.engines import ModelSource, ServingConfig
from dooly.measure._tasks import infeasible_record, record_of
from dooly.predict import load_latency_model
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation

SERVING = ServingConfig(max_model_len=512, max_num_batched_tokens=512, max_num_seqs=8)
TOO_LARGE = 512
"""Batches of as many tokens could not be run."""
DISTURBED = 7
"""The place of a batch that something disturbed in the first pass, and that was measured once more."""


@pytest.fixture(scope="module")
def environment() -> Environment:
    """Where the grid was measured: not here."""
    versions = {"driver": "6", "torch_version": "2", "engine": "vllm", "engine_version": "0"}
    layout = {"attention_backend": "FLASH_ATTN", "dtype": "bfloat16", "kv_cache_dtype": "auto", "block_size": 16}
    device = {"device": "a GPU of elsewhere", "device_kind": "cuda", "num_threads": 2}
    return Environment(**versions, **layout, **device, execution_mode="eager", quantization=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A model of a folder, of which the grid is."""
    folder = tmp_path_factory.mktemp("gridded")
    (folder / "config.json").write_text("{}")
    return ModelSource("gridded", folder)


@pytest.fixture(scope="module")
def grid(operation: Callable[..., TracedOperation], environment: Environment, model: ModelSource) -> Store:
    """A store with all batches in all passes: an operation by its tokens, and the step's own time; a wall second each."""
    linear = operation(f"{64:032x}", "layers.0.up", request_flops="2.0*num_tokens", request_bytes="64.0*num_tokens")
    step = operation(f"{1:032x}", "", stage="engine", name=STEP, request_dims=("num_tokens", "num_reqs"))
    traced = TracedModel("gridded", {"platform": "cuda"}, (linear, step))
    store = Store.open("memory://gridded", "a")
    write_described(store, environment, traced)
    write_traced(store, model, SERVING, traced, environment)
    order = count()
    for number in range(PASSES):
        known: set[tuple[str, Any]] = set()
        for place, batch in enumerate(measurement_batches(SERVING)):
            keys = [(op.signature, point_of(op, batch)) for op in traced.operations]
            missing = [key for key in keys if key not in known]
            known |= {*missing}
            for disturbed in [True, False] if (number, place) == (0, DISTURBED) else [False]:
                took_ns = (1 + 2 * disturbed) * (5000 + 64 * batch.num_tokens)
                facts = {"others_cores": 0.0, "drift": float(disturbed), "pass": number, "wall_s": 1 + 1e-6 * next(order)}
                for name, point in missing:
                    key = (name, environment.digest)
                    too_large = infeasible_record(key, point, number, "too large")
                    fits = batch.num_tokens < TOO_LARGE
                    store.write(record_of(key, point, [took_ns] * 3, facts) if fits else too_large)
    return store


@pytest.fixture
def measured(load_script: Callable[[str], Any], grid: Store, environment: Environment, model: ModelSource, tmp_path: Path) -> Any:  # noqa: ANN401 - a class of a script
    """What a sweep draws from, into an empty store."""
    script = load_script("benchmarks/measured_grid.py")
    return script.MeasuredGrid(grid, model, SERVING, environment, Store.open(tmp_path / "db", "a"))


def test_a_sweep_takes_a_part_of_the_grid_and_nothing_else(measured: Any, environment: Environment) -> None:  # noqa: ANN401
    """Each record that it keeps is one of the grid's; batches that could not be run are told as such."""
    measured.sweep()
    taken = 0
    for name, known in measured.known.items():
        records = measured.into.read(name, environment.digest)
        held = {(record.point, record.attributes["pass"]): record for record in records}
        assert len(held) == len(records)
        assert all(known[key].samples_ns.tolist() == record.samples_ns.tolist() for key, record in held.items())
        assert any(record.infeasible for record in records)
        taken += len(records)
    assert 0 < taken < sum(map(len, measured.known.values())) / 3
    assert measured.num_refused == 0


def test_what_was_disturbed_gives_way_to_what_was_not(measured: Any, environment: Environment) -> None:  # noqa: ANN401
    """Of a point with both kinds of records in a pass, the calm one is drawn."""
    records = [record for name in measured.known for record in measured.store.read(name, environment.digest)]
    disturbed = [record for record in records if record.attributes.get("spoiled")]
    assert disturbed
    for record in disturbed:
        assert measured.known[record.signature][record.point, 0].median_ns == record.median_ns / 3


def test_a_batch_that_the_grid_lacks_is_refused_and_the_sweep_goes_on(measured: Any) -> None:  # noqa: ANN401
    """No record is kept of it, and how many there were is told."""
    (linear, _) = measured.traced.operations
    known = measured.known[linear.signature]
    largest = max(point["d0"] for point, _ in known)
    lacked = [key for key in known if key[0]["d0"] == largest]
    for key in lacked:
        del known[key]
    measured.sweep()
    assert measured.num_refused > 0
    assert not any(key[0] == record.point for key in lacked for record in measured.into.read(*_key(measured, linear)))


def test_errors_are_of_what_no_store_holds(measured: Any) -> None:  # noqa: ANN401
    """A law that the closed forms have is met where nothing was drawn; with the grid held there is nothing left."""
    measured.sweep()
    fitted = load_latency_model(measured.into, measured.model, SERVING, measured.environment).operations[0]
    key = _key(measured, fitted.operation)
    left_out = measured.errors(fitted, measured.into)
    held, whole = latencies_of(measured.into, *key), latencies_of(measured.store, *key)
    assert len(left_out) == len(whole) - len(held) > 0
    assert left_out.max() < 0.03
    assert measured.errors(fitted, measured.into, measured.store).shape == (0,)


def _key(measured: Any, operation: TracedOperation) -> tuple[str, str]:  # noqa: ANN401 - a class of a script
    return operation.signature, measured.environment.digest


def test_a_sweep_costs_more_than_its_parts_and_less_than_all(measured: Any) -> None:  # noqa: ANN401
    """A second for each operation that the grid measured in a batch, though a sweep may ask for one of the two."""
    feasible = [record for known in measured.known.values() for record in known.values() if record.infeasible is None]
    assert measured.took_s == pytest.approx(len(feasible), rel=1e-3)
    measured.sweep()
    taken = [record for name in measured.known for record in measured.into.read(name, measured.environment.digest)]
    assert 0 < measured.num_asked < measured.took_s
    assert sum(record.infeasible is None for record in taken) <= measured.asked_s < measured.took_s / 3
