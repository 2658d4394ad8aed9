"""Loops that numba compiles. Import it where they are called: importing numba takes a third of a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and keep the code on disk where numba finds a folder that it may write to."""
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # "cannot cache function": a read-only installation without a home
        compiled = numba.njit(nogil=True)(function)
    return compiled


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


@_compiled
def _pairs(length, limit):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - query-key pairs of the first positions of a request
    inside = min(length, limit)
    return inside * (inside + 1) // 2 + max(length - limit, 0) * inside


@_compiled
def attention_work(new: npt.NDArray[np.int64], computed: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.float64]:
    """Return the fields of `AttentionWork` in their order, shape (9, num_batches).

    Args:
        new: Tokens to compute of each request, shape (num_batches, num_reqs); 0 marks a place without a request.
        computed: Tokens in the KV cache of each request, shape (num_batches, num_reqs).
        limit: Last positions that a query sees, its own among them.
    """
    work = np.zeros((9, len(new)))
    for batch in range(len(new)):
        for place in range(new.shape[1]):
            queries, cached = new[batch, place], computed[batch, place]
            if queries == 0:
                continue
            total = queries + cached
            read = min(total, limit - 1 + queries)
            work[6, batch] = max(work[6, batch], read)
            if queries == 1:
                work[0, batch] += read
                work[4, batch] += 1
                work[7, batch] = max(work[7, batch], read)
                work[8, batch] += read * read
            else:
                work[1, batch] += _pairs(total, limit) - _pairs(cached, limit)
                work[2, batch] += read
                work[3, batch] += queries
                work[5, batch] += 1
    return work
