"""Between which two neighbouring rates of the grid a candidate stops meeting its limits: bisection, one simulation at a time."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

from dooly.searching._limits import room, share_of_limit
from dooly.searching._rates import RATES_PER_DECADE, copies_for, index_up_to, rate_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.searching._candidate import Candidate
    from dooly.searching._evaluation import Evaluation

_FIRST_STRIDE = RATES_PER_DECADE // 10
_DEPTH = 3 * RATES_PER_DECADE
"""How far below the saturated throughput rates are tried: at a thousandth of it, requests are served alone."""

Value = tuple[float, float]
"""What a rate makes a candidate worth, the higher the better: what its copies need for a demanded rate, negative or 0, then what
each has of it."""
WORTHLESS: Value = (-math.inf, 0.0)


class Bracket:
    """What is known of the highest rate at which a candidate meets its limits.

    No rate counts that exceeds the throughput with all requests sent at once: the engine would not keep up with it, which a
    workload that ends too soon does not show.
    """

    def __init__(self, candidate: Candidate, weight: float, limits: Mapping[str, float], demanded: float | None = None) -> None:
        """Know nothing yet.

        Args:
            candidate: What is searched.
            weight: What a rate is divided by to compare candidates: GPUs, or their price.
            limits: Seconds by metric and statistic.
            demanded: Requests a second that copies of the candidate must bear together; None where the highest rate counts.
        """
        self.candidate = candidate
        self._weight = weight
        self._demanded = demanded
        self.evaluations: dict[float, Evaluation] = {}
        self.reason: str | None = None
        """Why the candidate cannot serve the workload or meets its limits at no rate; None while it may."""
        self.met: int | None = None
        """Highest place of the grid known to be met."""
        self.ceiling = 0
        """Lowest place known not to count; once all requests were sent at once."""
        self.saturated = 0
        """Lowest place above the saturated throughput."""
        self._limits = limits
        self._stride = _FIRST_STRIDE

    @property
    def is_open(self) -> bool:
        """Whether another simulation would say more."""
        return self.reason is None and (not self.evaluations or self.met != self.ceiling - 1)

    @property
    def best(self) -> Evaluation | None:
        """The simulation at the highest rate known to be met."""
        return None if self.met is None else self.evaluations[rate_at(self.met)]

    def value(self, index: int) -> Value:
        """Return what the rate at a place of the grid is worth, in GPUs or what these cost."""
        rate = rate_at(index)
        copies = 0 if self._demanded is None else copies_for(self._demanded, rate)
        return -copies * self._weight, rate / self._weight

    def next_rate(self, worth: Value) -> float:
        """Return the rate to try next, given the value from which on this candidate is of interest.

        All requests at once come first. Below that throughput, strides double until a rate is met; then the rest is halved.
        """
        if not self.evaluations:
            return math.inf
        lowest = self.saturated - 1 - _DEPTH
        index = max(lowest, self.ceiling - self._stride) if self.met is None else (self.met + self.ceiling) // 2
        unworthy = bisect_right(range(lowest, self.ceiling), worth, key=self.value)
        return rate_at(max(index, min(lowest + unworthy - 1, self.ceiling - 1)))

    def learn(self, found: Evaluation | str) -> None:
        """Take in what a simulation came to."""
        if isinstance(found, str):
            self.reason = found
            return
        self.evaluations[found.rate] = found
        if math.isinf(found.rate):
            self.ceiling = self.saturated = index_up_to(found.requests_per_s) + 1
            return
        index = index_up_to(found.rate)
        worst = room(found.latencies_s, self._limits)
        if worst <= 1:
            self.met = index
        else:
            self.ceiling, self._stride = index, 2 * self._stride
        if self.met is None and self.ceiling <= self.saturated - 1 - _DEPTH:
            name = max(self._limits, key=lambda key: share_of_limit(found.latencies_s[key], self._limits[key]))
            self.reason = (
                f"misses {name} at every rate: {found.latencies_s[name]:.4g} s even at {found.rate:g} requests a second, "
                f"allowed are {self._limits[name]:.4g} s"
            )
