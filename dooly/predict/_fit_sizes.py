"""Fit an operation over its own request dimensions, of an engine's model or of a plain module's: one, several or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.catalog import medians, pass_medians, sizes_at
from dooly.predict._regressor import fit_regressor
from dooly.predict._sizes_behind import sizes_behind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from dbstore import Record
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor

    Floats = npt.NDArray[np.float64]


def fit_sizes(work: OperationWork, records: Sequence[Record], *, at_one_size: bool = False) -> Regressor:
    """Fit an operation to its records, by the roofline at their sizes and with trees over the sizes themselves.

    Args:
        work: The operation's closed forms.
        records: Feasible records.
        at_one_size: Whether the one size that was measured is all that is ever asked for, and so no cause for doubt.
    """
    points, latency_ns = medians(records)
    terms, sizes = size_inputs(work, points)
    return fit_regressor(terms, sizes[:, :0] if at_one_size else sizes, latency_ns, pass_medians(records))


def size_inputs(work: OperationWork, points: Sequence[Any]) -> tuple[Floats, Floats]:
    """Return base terms and tree features at an operation's points, shapes (num_points, 3) and (num_points, num_dims)."""
    sizes = sizes_at(points, work.operation.request_dims)
    return work.roofline_terms(sizes_behind(work.operation.request_dims, sizes), len(points)), sizes
