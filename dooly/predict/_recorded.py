"""Records as what predictors are fitted to: batches that have their points, with the medians of their samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import batch_at, medians, sizes_at
from dooly.predict._features import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dbstore import Record
    from dooly.predict._operation import OperationWork

    Floats = npt.NDArray[np.float64]


def recorded_points(work: OperationWork, records: Sequence[Record]) -> tuple[BatchArrays, Floats]:
    """Return the measured points of an operation over tokens or requests as batches that have them, with their medians."""
    if work.is_attention:
        return recorded_batches(records)
    points, latency_ns = medians(records)
    sizes = sizes_at(points, work.operation.request_dims)[:, 0].astype(np.int64)
    if work.operation.request_dims == ("num_tokens",):
        return BatchArrays(sizes[:, None], np.zeros_like(sizes)[:, None], np.zeros_like(sizes)), latency_ns
    filled = (sizes[:, None] > np.arange(sizes.max())[None, :]).astype(np.int64)
    return BatchArrays(filled, np.zeros_like(filled), np.zeros_like(sizes)), latency_ns


def recorded_sizes(work: OperationWork, records: Sequence[Record]) -> tuple[Floats, Floats]:
    """Return the sizes of an operation's one request dimension, growing, with their medians, shape (num_points,) each."""
    points, latency_ns = medians(records)
    sizes = sizes_at(points, work.operation.request_dims)[:, 0]
    order = np.argsort(sizes)
    return sizes[order], latency_ns[order]


def recorded_batches(records: Sequence[Record]) -> tuple[BatchArrays, Floats]:
    """Return the batches that records were measured over, with their medians."""
    points, latency_ns = medians(records)
    return BatchArrays.of([batch_at(point) for point in points]), latency_ns
