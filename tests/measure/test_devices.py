"""Shares of a profile on the workers of a cluster: each once, and again where its worker is lost."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Environment, Record, Store
from dooly.device import native_dtype
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError, MeasurementError
from dooly.measure import ProfileResult, profile
from dooly.measure._devices import combined, run_shares
from dooly.measure.engine._profile import _part
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation

ENVIRONMENT = Environment(
    device="a device",
    device_kind="cpu",
    driver="1",
    torch_version="1",
    engine="none",
    engine_version="1",
    attention_backend="none",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=1,
)
NUM_OPERATIONS, NUM_POINTS = 6, 5


def measurer(place: Path, lost: str | None) -> Callable[[tuple[int, int]], int]:
    """Return what measures a share of six operations as a profile does: point by point, and only what the store lacks.

    The worker that has written three points is lost, once where `lost` is `once`, and each time where it is `always`.
    """
    digest, mark = ENVIRONMENT.digest, place.with_name("lost")

    def measure(share: tuple[int, int]) -> int:
        store, written = Store.open(place, "a"), 0
        for operation in range(NUM_OPERATIONS)[share[0] :: share[1]]:
            for point in range(NUM_POINTS):
                if store.has(f"s{operation}", digest, {"d0": point}):
                    continue
                if written == 3 and lost and not (lost == "once" and mark.exists()):
                    mark.touch()
                    os._exit(9)
                store.write(Record(f"s{operation}", digest, {"d0": point}, np.array([1000 * operation + point + 1])))
                written += 1
        return written

    return measure


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store that knows the environment."""
    store = Store.open(tmp_path / "db", "a")
    store.write_document("environments", ENVIRONMENT.digest, ENVIRONMENT.to_json())
    return tmp_path / "db"


def records(place: Path) -> set[Record]:
    """Return all records of a store."""
    store = Store.open(place)
    return {record for key in list(store.keys()) for record in store.read(*key)}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_fill_a_store_as_one_does(place: Path, tmp_path: Path, num_workers: int) -> None:
    """One worker and two write the same records as this process alone."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with the test extra")
    alone = Store.open(tmp_path / "alone", "a")
    alone.write_document("environments", ENVIRONMENT.digest, ENVIRONMENT.to_json())
    measurer(tmp_path / "alone", None)((0, 1))
    written = run_shares(measurer(place, None), "local", num_workers)
    assert len(written) == num_workers
    assert sum(written) == NUM_OPERATIONS * NUM_POINTS
    assert records(place) == records(tmp_path / "alone")
    assert Store.open(place).verify() == ()


@pytest.mark.engine
def test_workers_measure_on_an_engine_what_one_process_does(tiny_llama: Callable[..., ModelSource], tmp_path: Path) -> None:
    """The whole grid of a small model, by two workers of a cluster and by this process: the same points in the same passes."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with the test extra")
    model = tiny_llama("shared")
    serving = ServingConfig(native_dtype(), max_model_len=32, max_num_batched_tokens=16, max_num_seqs=2)

    def measure(share: tuple[int, int]) -> ProfileResult:
        return profile(model, Store.open(tmp_path / "workers", "a"), serving, target_error=0.0, share=share)

    found = combined(run_shares(measure, "local", 2))
    profile(model, Store.open(tmp_path / "alone", "a"), serving, target_error=0.0)
    keys = [
        {(record.signature, record.point, record.attributes["pass"]) for record in records(tmp_path / place)}
        for place in ("workers", "alone")
    ]
    assert keys[0] == keys[1]
    assert found.num_left == 0 or found.num_spoiled  # what stays disturbed is left to the next call


def test_a_lost_workers_share_is_taken_over(place: Path) -> None:
    """Another goes on where it ended: all is there, and nothing that was written is measured again."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with the test extra")
    written = run_shares(measurer(place, "once"), "local", 2)
    assert (place.parent / "lost").exists()
    assert len(records(place)) == NUM_OPERATIONS * NUM_POINTS
    assert sum(written) == NUM_OPERATIONS * NUM_POINTS - 3


def test_a_share_that_is_lost_again_and_again_is_told(place: Path) -> None:
    """It is one line, and what was measured is kept."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with the test extra")
    with pytest.raises(MeasurementError, match=r"^--ray: a worker was lost 4 times .*; what was measured is kept, run it again$"):
        run_shares(measurer(place, "always"), "local", 1)
    assert len(records(place)) == 3 * 4


@pytest.mark.parametrize(
    ("cores", "num_gpus", "num_workers", "asked"),
    [
        ((16, 64), 0, None, [16, 16]),
        ((0, 16, 64), 0, None, [16, 16]),
        ((4,), 0, 2, [2, 2]),
        ((2,), 0, 4, [1, 1, 1, 1]),
        ((16, 64), 3, None, [None, None, None]),
    ],
    ids=["two machines", "a head without cores", "two workers on one", "more workers than cores", "GPUs"],
)
def test_workers_on_processors_ask_for_a_machine_each(
    cores: tuple[int, ...],
    num_gpus: int,
    num_workers: int | None,
    asked: list[int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each asks for the cores of the smallest machine, or its part of it: else Ray puts two on one, and gives each one thread."""
    found: list[int | None] = []

    def remote(**needs: Any) -> Callable[..., SimpleNamespace]:  # noqa: ANN401 - what Ray takes
        return lambda measure: SimpleNamespace(remote=lambda share: found.append(needs.get("num_cpus")) or measure(share))

    ray = SimpleNamespace(
        init=lambda *_, **__: None,
        cluster_resources=lambda: {"GPU": float(num_gpus)} if num_gpus else {},
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": float(number)} if number else {}} for number in cores],
        remote=remote,
        get=list,
        shutdown=lambda: None,
        exceptions=SimpleNamespace(WorkerCrashedError=OSError, NodeDiedError=OSError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    assert run_shares(lambda share: share, "auto", num_workers) == [(number, len(asked)) for number in range(len(asked))]
    assert found == asked


def test_without_ray_is_one_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Ray is not installed, the line says how to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        InvalidInputError, match=r"^--ray: Ray is not installed; install it with `pip install 'dooly-llm\[ray\]'`, in a .*"
    ):
        run_shares(measurer(place, None), "local")


def test_each_operation_is_in_one_share(operation: Callable[..., TracedOperation]) -> None:
    """Operations of one signature stay together, and no share has another's."""
    operations = [operation(f"s{number % 5}", f"model.layers.{number}.up") for number in range(12)]
    traced = TracedModel("made-up", {}, tuple(operations))
    assert _part(traced, (0, 1)) == traced
    shares = [{op.signature for op in _part(traced, (number, 3)).operations} for number in range(3)]
    assert sorted(signature for share in shares for signature in share) == [f"s{number}" for number in range(5)]
    assert sum(len(_part(traced, (number, 3)).operations) for number in range(3)) == 12
    assert _part(traced, (7, 8)).operations == ()


@pytest.mark.parametrize("share", [(3, 2), (-1, 2), (0, 0), (1,), 2, ("0", "1")])
def test_what_is_no_share_is_refused(share: Any, tmp_path: Path) -> None:  # noqa: ANN401 - what type checkers refuse
    """A part that is not there would measure nothing, and say that nothing is left."""
    store, model = Store.open(tmp_path / "db", "a"), ModelSource("made-up", tmp_path)
    with pytest.raises(InvalidInputError, match=r"dooly\.profile: share: .* is no part of equal ones"):
        profile(model, store, share=share)


def test_results_of_shares_add_up() -> None:
    """Points add up, seconds and errors are the largest."""
    first = ProfileResult("made-up", 6, 90, 40, 1, 0, 7.0, 0.02, known_least=("a", 0.1), least_floor=0.05, num_infeasible=2)
    second = ProfileResult("made-up", 6, 90, 30, 2, 5, 9.0, 0.01, known_least=("b", 0.2), least_floor=0.01, num_infeasible=1)
    third = ProfileResult("made-up", 6, 90, 20, 0, 0, 8.0)
    both = ProfileResult("made-up", 6, 90, 90, 3, 5, 9.0, 0.02, known_least=("b", 0.2), least_floor=0.01, num_infeasible=3)
    assert combined([first, second, third]) == both
