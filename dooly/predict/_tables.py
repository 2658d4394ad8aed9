"""What operations take in batches: by tables where counts decide, and at the sizes that graphs were captured at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import key_of
from dooly.predict._features import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.catalog import Key
    from dooly.predict._domain import Domain
    from dooly.predict._fitted import FittedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Price = Callable[[FittedOperation], Floats]
    """Nanoseconds of one run of an operation in each batch, shape (num_batches,)."""


class LatencyTables:
    """Prices the operations of batches within a domain; each table is made at its first use."""

    def __init__(self, domain: Domain, captured_tokens: tuple[int, ...]) -> None:
        """Take the domain, and the tokens of the steps that the engine captures in CUDA graphs, growing."""
        self._domain = domain
        self._computed_tokens = _computed_tokens(domain.num_tokens, captured_tokens)
        self._tables: dict[Key, Floats] = {}

    def price_in(self, batches: BatchArrays) -> Price:
        """Return what prices operations in batches that the domain allows; each operation once, however many places run it."""
        num_tokens, num_reqs = self._computed_tokens[batches.num_tokens], batches.num_reqs
        known: dict[Key, Floats] = {}

        def price(fitted: FittedOperation) -> Floats:
            key = key_of(fitted.operation)
            if key not in known:
                counts = fitted.work.counts
                if fitted.work.is_attention:
                    known[key] = fitted.latency_ns(batches)
                elif len(counts) > 1:
                    known[key] = fitted.latency_ns(BatchArrays.of_counts(num_tokens, num_reqs))
                else:
                    known[key] = self._table(fitted)[(num_tokens if "num_tokens" in counts else num_reqs) - 1]
            return known[key]

        return price

    def _table(self, fitted: FittedOperation) -> Floats:
        """Return what an operation takes at each value of the one count that decides, from 1."""
        key = key_of(fitted.operation)
        if key not in self._tables:
            per_token = "num_tokens" in fitted.work.counts
            sizes = np.arange(1, (self._domain.num_tokens if per_token else self._domain.num_reqs) + 1)
            self._tables[key] = fitted.latency_ns(BatchArrays.of_counts(sizes, np.ones_like(sizes) if per_token else sizes))
        return self._tables[key]


def _computed_tokens(num_tokens: int, captured_tokens: tuple[int, ...]) -> Ints:
    """Return the tokens that a step computes, by tokens scheduled: those of the next graph, up to the largest."""
    sizes = np.arange(num_tokens + 1)
    captured = np.array([0, *(size for size in captured_tokens if size <= num_tokens)])
    is_captured = sizes <= captured[-1]
    sizes[is_captured] = captured[np.searchsorted(captured, sizes[is_captured])]
    return sizes
