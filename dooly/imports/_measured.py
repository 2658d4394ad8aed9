"""Write what was measured of single operations into the data of a device: each under its signature, and under its family."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import feasible_records
from dooly.predict._kinds import moves_only
from dooly.predict._operation import OperationWork
from dooly.predict._recorded import recorded_sizes as sizes_and_medians
from dooly.tracing import evaluate_form

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dbstore import Environment, Store
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Sizes = Mapping[str, tuple[Floats, Floats]]
    """Sizes, growing, and latencies in nanoseconds by signature, of operations of one request dimension."""

REMEDIES = ("profile the model there", "profile the model with smaller limits")


def recorded_sizes(store: Store, traced: TracedModel, environment: Environment, table: TracedModel) -> Sizes:
    """Return what a store's records say of a model's operations that have one request dimension and no state of their own.

    An operation of the table is the traced one of its signature, or else the one that runs as the same module: a GPU's engine may
    run another operator there than the platform on which the table was made.

    Args:
        store: An open store.
        traced: The model, as it was traced where it was measured.
        environment: Where that was.
        table: The same model's operations, under whose signatures the records go.
    """
    by_signature = {op.signature: op for op in traced.operations}
    by_place = {(module, op.name, op.request_dims): op for op in traced.operations for module, _ in op.placements}
    found = {}
    for wanted in _single_sized(table):
        operation = by_signature.get(wanted.signature) or by_place.get((wanted.module, wanted.name, wanted.request_dims))
        if operation is not None:
            records = feasible_records(store, operation, environment, environment.device, REMEDIES)
            found[wanted.signature] = sizes_and_medians(OperationWork(operation), records)
    return found


def write_measured(sizes: Sizes, tables: Mapping[str, TracedOperation], out: Path) -> None:
    """Write `measured.npz` by signature, and `curves.npz` by family over the bytes that operations move.

    Args:
        sizes: What was measured.
        tables: Operations by signature.
        out: Folder of the device.
    """
    np.savez_compressed(out / "measured.npz", **{s: np.stack(points) for s, points in sizes.items()})  # type: ignore[arg-type] # numpy's stub takes no mapping
    curves = {}
    for signature, (at, latency_ns) in sizes.items():
        operation = tables[signature]
        if moves_only(operation):
            traffic = evaluate_form(operation.request_bytes, {operation.request_dims[0]: at})
            curves[f"{operation.family}-{signature}"] = np.stack([traffic, latency_ns])
    np.savez_compressed(out / "curves.npz", **curves)  # type: ignore[arg-type] # as above


def carry_curves(folder: Path, out: Path, slower: float, cache_bytes: float) -> None:
    """Write `carried.npz`: the curves of a device with the same multiprocessors and cache, whose memory is faster.

    Args:
        folder: Folder of that device.
        out: Folder of the device that they are carried to.
        slower: How many times longer its memory takes.
        cache_bytes: What its last cache holds; operations that move more wait for memory.
    """
    with np.load(folder / "curves.npz", allow_pickle=False) as arrays:
        curves = {
            name: np.stack([traffic, latency_ns * np.where(traffic > cache_bytes, slower, 1.0)])
            for name, (traffic, latency_ns) in arrays.items()
        }
    np.savez_compressed(out / "carried.npz", **curves)  # type: ignore[arg-type] # as above


def _single_sized(table: TracedModel) -> tuple[TracedOperation, ...]:
    return tuple(
        op for op in table.operations if op.stage != "engine" and not op.depends_on_context and len(op.request_dims) == 1
    )
