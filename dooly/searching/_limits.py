"""The latencies that a search holds candidates to: service-level objectives as `ttft_p90=0.5`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
LIMITED = tuple(f"{metric}_{statistic}" for metric in METRICS for statistic in STATISTICS)
"""All that can be limited."""


def check_limits(limits: Mapping[str, float]) -> None:
    """Check latency limits, in seconds by metric and statistic.

    Raises:
        InvalidInputError: There is none, one is of no known name, or one is no positive finite number.
    """
    if not limits:
        raise InvalidInputError(
            "limits: no latency is limited; give one or more, as ttft_p90 (--ttft-p90) or tpot_p90 (--tpot-p90)"
        )
    for name, limit_s in limits.items():
        if name not in LIMITED:
            raise InvalidInputError(
                f"limits: {spell(name)} is none of {', '.join(METRICS)} with one of {', '.join(STATISTICS)}, as ttft_p90"
            )
        if not 0 < limit_s < math.inf:
            raise InvalidInputError(f"limits: {name} must be a positive finite number of seconds, got {limit_s}")


def share_of_limit(value_s: float | None, limit_s: float) -> float:
    """Return a latency as a fraction of its limit, both in seconds: at most 1 where the limit is met.

    A latency that no request has, None, as TPOT where all ask for one token, meets every limit.
    """
    return 0.0 if value_s is None else value_s / limit_s


def tightness(latencies_s: Mapping[str, float | None], limits: Mapping[str, float]) -> tuple[float, ...]:
    """Return latencies as fractions of their limits to a percent, the tightest first: of two such, the smaller has more room.

    What differs by less than a percent is alike, so that the limits behind it decide.
    """
    return tuple(sorted((round(share_of_limit(latencies_s[name], limit_s), 2) for name, limit_s in limits.items()), reverse=True))


def room(latencies_s: Mapping[str, float | None], limits: Mapping[str, float]) -> float:
    """Return the largest latency as a fraction of its limit: at most 1 where all limits are met."""
    return max(share_of_limit(latencies_s[name], limit_s) for name, limit_s in limits.items())
