"""Times between the tokens of a request (inter-token latency), over all requests: distinct gaps with how often each occurs.

Requests that decode together get their tokens together, so a step adds few distinct gaps however many requests it serves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class TokenGaps:
    """Gaps between tokens, each with the number of times that it occurred."""

    gaps_ns: Ints
    """Gaps in nanoseconds, shape (num_gaps,), in no order."""
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


class TokenClock:
    """Notes when each request got its last token, and the gaps in between."""

    def __init__(self, num_requests: int) -> None:
        """Start with no token of any request."""
        self._last_ns = np.full(num_requests, -1, dtype=np.int64)
        self._gaps: list[Ints] = []
        self._counts: list[Ints] = []

    def tick(self, requests: Ints, ends_ns: Ints) -> None:
        """Note that requests got a token each at every one of the given ends.

        Args:
            requests: Positions of the requests, shape (num_reqs,).
            ends_ns: When the steps ended, growing, shape (num_steps,).
        """
        before = self._last_ns[requests]
        gaps, counts = np.unique(ends_ns[0] - before[before >= 0], return_counts=True)
        self._gaps += [gaps, np.diff(ends_ns)]
        self._counts += [counts, np.full(len(ends_ns) - 1, len(requests))]
        self._last_ns[requests] = ends_ns[-1]

    def gaps(self) -> TokenGaps:
        """Return all gaps so far."""
        if not self._gaps:
            return TokenGaps(np.empty(0, np.int64), np.empty(0, np.int64))
        return TokenGaps(np.concatenate(self._gaps), np.concatenate(self._counts).astype(np.int64))
