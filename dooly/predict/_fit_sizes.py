"""Fit an operation over its own request dimensions, of an engine's model or of a plain module's: one, several or none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.catalog import medians, sizes_at
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
    return fit_points(work, *medians(records), at_one_size=at_one_size)


def fit_points(work: OperationWork, points: Sequence[Any], latency_ns: Floats, *, at_one_size: bool = False) -> Regressor:
    """Fit an operation to its latency at points, shape (num_points,), as `fit_sizes` does."""
    measured = sizes_at(points, work.operation.request_dims)
    terms = work.roofline_terms(sizes_behind(work.operation.request_dims, measured), len(points))
    return fit_regressor(terms, measured[:, :0] if at_one_size else measured, latency_ns)
