"""Loops that numba compiles. Import it where they are called: importing numba takes a third of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

_compiled: Callable[[Any], Any] = numba.njit(cache=True, nogil=True)


_BLOCK = 512
"""Rows whose leaves are looked up together: their numbers stay in the first cache."""
_FEW = 5
"""Rows below which one after the other is faster."""


@_compiled
def _of_row(row, feature, border, leaf):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - as below
    total = 0.0
    for tree in range(len(feature)):
        number = 0
        for level in range(feature.shape[1]):
            if row[feature[tree, level]] > border[tree, level]:
                number |= 1 << level
        total += leaf[tree, number]
    return total


@_compiled
def _of_rows(columns, feature, border, leaf):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - as below, features by column
    num_rows = columns.shape[1]
    sums, numbers = np.zeros(num_rows), np.empty(num_rows, dtype=np.int32)
    for tree in range(len(feature)):
        numbers[:] = 0
        for level in range(feature.shape[1]):
            column, least, bit = columns[feature[tree, level]], border[tree, level], np.int32(1 << level)
            for row in range(num_rows):
                numbers[row] |= bit if column[row] > least else np.int32(0)
        for row in range(num_rows):
            sums[row] += leaf[tree, numbers[row]]
    return sums


@_compiled
def sums_of_leaves(
    features: npt.NDArray[np.float32],
    feature: npt.NDArray[np.int64],
    border: npt.NDArray[np.float32],
    leaf: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return the sum of each row's leaves over all trees, shape (num_rows,).

    Args:
        features: Features of each row, shape (num_rows, num_features), in CatBoost's single precision.
        feature: Feature that each level of a tree asks about, shape (num_trees, depth).
        border: Value that it must exceed, shape (num_trees, depth).
        leaf: Value of each leaf, shape (num_trees, 2**depth).
    """
    num_rows = len(features)
    sums = np.zeros(num_rows)
    for start in range(0, num_rows, _BLOCK):
        rows = features[start : start + _BLOCK]
        if len(rows) < _FEW:
            for row in range(len(rows)):
                sums[start + row] = _of_row(rows[row], feature, border, leaf)
        else:
            sums[start : start + _BLOCK] = _of_rows(np.ascontiguousarray(rows.T), feature, border, leaf)
    return sums
