"""The request rates that are tried: a hundred a decade, of three digits, so that neighbours differ by 2.3 %."""

from __future__ import annotations

import math

RATES_PER_DECADE = 100


def rate_at(index: int) -> float:
    """Return the rate at a place of the grid, in requests a second; 1 is at 0."""
    return float(f"{10 ** (index / RATES_PER_DECADE):.3g}")


def copies_for(demanded: float, rate: float) -> int:
    """Return how many engines or fleets, each of which bears `rate` requests a second, bear `demanded` together."""
    return max(1, math.ceil(round(demanded / rate, 9)))  # 4.9 is 7 times 0.7


def index_up_to(rate: float) -> int:
    """Return the last place whose rate does not exceed a positive finite `rate`."""
    index = math.ceil(RATES_PER_DECADE * math.log10(rate)) + 1
    while rate_at(index) > rate:
        index -= 1
    return index
