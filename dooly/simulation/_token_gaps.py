"""Times between the tokens of a request (inter-token latency), over all requests: distinct gaps with how often each occurs.

Requests that decode together get their tokens together, so a step adds few distinct gaps however many requests it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._workload import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

MAX_GAPS = 1 << 21
"""Distinct gaps from which on they are counted in microseconds, which bounds the memory that they take."""
_COARSE_NS = 1_000
_PENDING = 1 << 17


@dataclass(frozen=True, slots=True, eq=False)
class TokenGaps:
    """Gaps between tokens, each with the number of times that it occurred."""

    gaps_ns: Ints
    """Gaps in nanoseconds, shape (num_gaps,), growing where a simulation counted them."""
    counts: Ints
    """How often each occurred, shape (num_gaps,)."""

    def statistics_s(self, percentiles: Sequence[int]) -> tuple[float, ...] | None:
        """Return mean and percentiles in seconds, as over all gaps one by one; None where no request has two tokens."""
        total = int(self.counts.sum())
        if not total:
            return None
        order = np.argsort(self.gaps_ns)
        values, ends = self.gaps_ns[order], np.cumsum(self.counts[order])
        places = np.array(percentiles) / 100 * (total - 1)
        low, high = (values[np.searchsorted(ends, edge, side="right")] for edge in (np.floor(places), np.ceil(places)))
        found = low + (places - np.floor(places)) * (high - low)
        mean = float(self.gaps_ns @ self.counts) / total
        return tuple(value / NS_PER_S for value in (mean, *found.tolist()))


class GapCounts:
    """Counts equal gaps as they come; of very many that differ, to the microsecond."""

    def __init__(self) -> None:
        """Start with no gap."""
        self._merged = (np.empty(0, np.int64), np.empty(0, np.int64))
        self._parts: list[tuple[Ints, Ints]] = []
        self._num_pending = 0
        self._unit_ns = 1

    def add(self, gaps_ns: Ints, counts: Ints) -> None:
        """Count gaps, each so often; both arrays have shape (num_gaps,)."""
        self._parts.append((gaps_ns, counts))
        self._num_pending += len(gaps_ns)
        if self._num_pending >= max(_PENDING, len(self._merged[0])):
            self._merge()

    def _merge(self) -> None:
        values, counts = (np.concatenate(columns) for columns in zip(self._merged, *self._parts, strict=True))
        self._parts, self._num_pending = [], 0
        self._merged = _added_up(values, counts, self._unit_ns)
        if len(self._merged[0]) > MAX_GAPS:
            self._unit_ns = _COARSE_NS
            self._merged = _added_up(*self._merged, self._unit_ns)

    def total(self) -> TokenGaps:
        """Return all gaps so far, growing."""
        self._merge()
        return TokenGaps(*self._merged)


def _added_up(gaps_ns: Ints, counts: Ints, unit_ns: int) -> tuple[Ints, Ints]:
    """Return distinct gaps in multiples of a unit, growing, with their counts."""
    values, places = np.unique((gaps_ns + unit_ns // 2) // unit_ns * unit_ns, return_inverse=True)
    summed = np.zeros(len(values), np.int64)
    np.add.at(summed, places, counts)
    return values, summed


class TokenClock:
    """Notes when each request got its last token, and the gaps in between."""

    def __init__(self, num_requests: int) -> None:
        """Start with no token of any request."""
        self._last_ns = np.full(num_requests, -1, dtype=np.int64)
        self._counts = GapCounts()

    def tick(self, requests: Ints, ends_ns: Ints) -> None:
        """Note that requests got a token each at every one of the given ends.

        Args:
            requests: Positions of the requests, shape (num_reqs,).
            ends_ns: When the steps ended, growing, shape (num_steps,).
        """
        before = self._last_ns[requests]
        gaps, counts = np.unique(ends_ns[0] - before[before >= 0], return_counts=True)
        self._counts.add(gaps, counts)
        self._counts.add(np.diff(ends_ns), np.full(len(ends_ns) - 1, len(requests)))
        self._last_ns[requests] = ends_ns[-1]

    def gaps(self) -> TokenGaps:
        """Return all gaps so far."""
        return self._counts.total()
