"""Prices of steps as arrays, from which compiled loops compute what a step takes without a call into Python."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.prices._arrays import new_scratch
from dooly.prices._forest import Forest
from dooly.prices._sheet import AttentionPrice, PriceSheet

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["AttentionPrice", "Forest", "PriceSheet", "price_batches"]


def price_batches(
    sheet: PriceSheet, new: npt.NDArray[np.int64], computed: npt.NDArray[np.int64], num_new_requests: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return the latencies of steps in nanoseconds, shape (num_steps,), and the parts of each by source.

    These have shape (num_steps, num_sources + 1); in the last place stand the nanoseconds of a step beyond the sheet's reach.

    Args:
        sheet: Prices the steps, which must keep its limits.
        new: Tokens to compute of each request, shape (num_steps, num_reqs); 0 marks a place without a request.
        computed: Tokens in the KV cache of each request, of the same shape.
        num_new_requests: Requests that the engine sees for the first time, shape (num_steps,).
    """
    from dooly.prices._compiled_batches import price_steps

    steps_ns, priced_ns = price_steps(sheet.arrays, new, computed, num_new_requests, new_scratch())
    return steps_ns, priced_ns
