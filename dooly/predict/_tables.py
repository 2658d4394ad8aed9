"""What operations take in batches: by tables where counts decide, and at the sizes that graphs were captured at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import key_of
from dooly.predict._features import BatchArrays
from dooly.predict._kinds import Experts, LinearLayer, kind_of
from dooly.predict._price_sheet import attention_prices, price_sheet
from dooly.predict._sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dooly.catalog import Key
    from dooly.predict._domain import Domain
    from dooly.predict._fitted import FittedOperation
    from dooly.predict._hardware import Hardware
    from dooly.predict._sources import Source
    from dooly.prices import AttentionPrice, PriceSheet

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Price = Callable[[FittedOperation], Floats]
    """Nanoseconds of one run of an operation in each batch, shape (num_batches,)."""
    Runs = Sequence[tuple[FittedOperation, int]]
    """Operations and how often a step runs each."""
    Sums = tuple[dict[Source, Floats], dict[Source, Floats], Runs]
    """Nanoseconds by source at each number of tokens, then of requests, from 0; and the operations that neither decides."""


_BOUND = 2
"""How many times longer than its bytes a product's arithmetic takes that needs full power: taken for granted."""
_FP8, _FP8_RATE = ("fp8", "fp8_block"), 2
"""Products whose activations have eight bits, and their rate over that of sixteen; it is 1 where weights alone are narrower."""


class _Made:
    """What several domains of the same operations share."""

    def __init__(self) -> None:
        self.tables: dict[Key, Floats] = {}
        """By operation, as far as any domain has asked."""
        self._prices: list[tuple[AttentionPrice, ...] | None] = []

    def attention_prices(self, runs: Runs) -> tuple[AttentionPrice, ...] | None:
        """Return the prices of attention, made at the first call; runs are the same in every call."""
        if not self._prices:
            self._prices.append(attention_prices(runs))
        return self._prices[0]


class LatencyTables:
    """Prices the operations of batches within a domain; each table is made at its first use."""

    def __init__(self, domain: Domain, captured_tokens: tuple[int, ...], made: _Made | None = None) -> None:
        """Take the domain, the tokens of the steps that the engine captures in CUDA graphs, growing, and what is made already."""
        self._domain = domain
        self._computed_tokens = _computed_tokens(domain.num_tokens, captured_tokens)
        self._made = made or _Made()
        self._sums: Sums | None = None

    def within(self, domain: Domain, captured_tokens: tuple[int, ...]) -> LatencyTables:
        """Return tables of the same operations within another domain, which share what both ask for."""
        return LatencyTables(domain, captured_tokens, self._made)

    def price_in(self, batches: BatchArrays) -> Price:
        """Return what prices operations in batches; each operation once, however many places run it.

        Sizes beyond the domain, which no table holds, are priced one by one.
        """
        num_tokens, num_reqs = self._padded(batches.num_tokens), batches.num_sampled
        are_tabled = num_tokens.max() <= self._domain.num_tokens and num_reqs.max() <= self._domain.num_reqs
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
                    sizes = num_tokens if "num_tokens" in counts else num_reqs
                    known[key] = self._table(fitted)[sizes - 1] if are_tabled else self._beyond(fitted, sizes)
            return known[key]

        return price

    def sums_in(self, batches: BatchArrays, runs: Runs) -> dict[Source, Floats]:
        """Return the nanoseconds of steps that are the sum of their operations, by source, shape (num_batches,) each.

        What one count decides is added up once, over all operations and sizes.

        Args:
            batches: Steps that the domain allows.
            runs: The operations and how often a step runs each, the same in every call.
        """
        by_tokens, by_reqs, others = self._added_up(runs)
        num_tokens, num_reqs = self._computed_tokens[batches.num_tokens], batches.num_sampled
        sums = {source: by_tokens[source][num_tokens] + by_reqs[source][num_reqs] for source in SOURCES}
        price = self.price_in(batches)
        for fitted, count in others:
            sums[fitted.latency.source] += count * price(fitted)
        return sums

    def price_sheet(self, runs: Runs) -> PriceSheet | None:
        """Return the price sheet of steps that are the sum of their operations; None where one of them is none it can hold."""
        by_tokens, by_reqs, others = self._added_up(runs)
        if (prices := self._made.attention_prices(others)) is None:
            return None
        tokens_ns = np.array([by_tokens[source][self._computed_tokens] for source in SOURCES])
        return price_sheet(tokens_ns, np.array([by_reqs[source] for source in SOURCES]), prices, self._domain)

    def products_ns(self, runs: Runs, hardware: Hardware) -> Ints:
        """Return what a step's products take whose arithmetic takes twice what their bytes do, by its tokens from 0.

        Args:
            runs: The operations and how often a step runs each, the same in every call.
            hardware: The device.
        """
        total_ns = np.zeros(self._domain.num_tokens + 1)
        sizes = np.arange(1, self._domain.num_tokens + 1)
        batches = BatchArrays.of_counts(sizes, np.ones_like(sizes))
        for fitted, count in runs:
            kind = kind_of(fitted.operation)
            if isinstance(kind, LinearLayer | Experts) and fitted.work.counts == {"num_tokens"}:
                flops, traffic = fitted.work.cost(batches)
                rate = hardware.flops_per_s * (_FP8_RATE if kind.dtype in _FP8 else 1)
                is_bound = flops / rate >= _BOUND * traffic / hardware.memory_bytes_per_s
                total_ns[1:] += np.where(is_bound, count * self._table(fitted), 0.0)
        return np.rint(total_ns[self._computed_tokens]).astype(np.int64)

    def _added_up(self, runs: Runs) -> Sums:
        """Return what one count decides, added up over all operations; worked out at the first call."""
        if self._sums is None:
            self._sums = self._add_up(runs)
        return self._sums

    def _add_up(self, runs: Runs) -> Sums:
        by_tokens, by_reqs = ({s: np.zeros(n + 1) for s in SOURCES} for n in (self._domain.num_tokens, self._domain.num_reqs))
        others = []
        for fitted, count in runs:
            if fitted.work.is_attention or len(fitted.work.counts) > 1:
                others.append((fitted, count))
            else:
                by = by_tokens if "num_tokens" in fitted.work.counts else by_reqs
                by[fitted.latency.source][1:] += count * self._table(fitted)
        return by_tokens, by_reqs, tuple(others)

    def _padded(self, num_tokens: Ints) -> Ints:
        """Return the tokens that steps compute, given those that are scheduled; beyond the domain nothing is captured."""
        if num_tokens.max() <= self._domain.num_tokens:
            return self._computed_tokens[num_tokens]
        within = np.minimum(num_tokens, self._domain.num_tokens)
        return np.where(within == num_tokens, self._computed_tokens[within], num_tokens)

    def _beyond(self, fitted: FittedOperation, sizes: Ints) -> Floats:
        """Return what an operation takes at values of the one count that decides, some beyond its table; shape (num_batches,)."""
        table = self._table(fitted)
        beyond = sizes > len(table)
        found: Floats = table[np.minimum(sizes, len(table)) - 1]
        if beyond.any():
            found[beyond] = _at_sizes(fitted, sizes[beyond])
        return found

    def _table(self, fitted: FittedOperation) -> Floats:
        """Return what an operation takes at each value of the one count that decides, from 1."""
        key = key_of(fitted.operation)
        num_sizes = self._domain.num_tokens if "num_tokens" in fitted.work.counts else self._domain.num_reqs
        known = self._made.tables.get(key, np.empty(0))
        if len(known) < num_sizes:
            added = _at_sizes(fitted, np.arange(len(known) + 1, num_sizes + 1))
            self._made.tables[key] = known = np.concatenate([known, added])
        return known[:num_sizes]


def _at_sizes(fitted: FittedOperation, sizes: Ints) -> Floats:
    """Return what an operation takes at values of the one count that decides, shape (num_sizes,)."""
    num_reqs = np.ones_like(sizes) if "num_tokens" in fitted.work.counts else sizes
    return fitted.latency_ns(BatchArrays.of_counts(sizes, num_reqs))


def _computed_tokens(num_tokens: int, captured_tokens: tuple[int, ...]) -> Ints:
    """Return the tokens that a step computes, by tokens scheduled: those of the next graph, up to the largest."""
    sizes = np.arange(num_tokens + 1)
    captured = np.array([0, *(size for size in captured_tokens if size <= num_tokens)])
    is_captured = sizes <= captured[-1]
    sizes[is_captured] = captured[np.searchsorted(captured, sizes[is_captured])]
    return sizes
