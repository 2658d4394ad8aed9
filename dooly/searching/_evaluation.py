"""One simulation of a search: a candidate at one request rate. It runs in any process, which loads each candidate once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dooly.errors import DoolyError
from dooly.predict import LatencyModel, load_latency_model
from dooly.searching._limits import LIMITED
from dooly.simulation import SchedulerConfig, scheduler_config, simulate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.searching._candidate import Candidate
    from dooly.simulation import Workload

_LOADED = 128
"""Candidates whose latency models a process keeps."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a candidate's simulation at one request rate came to."""

    rate: float
    """Requests a second that arrive in the mean; infinite where all arrive at once."""
    latencies_s: Mapping[str, float | None]
    """Mean and percentiles of TTFT, TPOT, ITL and E2E in seconds, as `ttft_p90`; None where no request has such a latency."""
    requests_per_s: float
    """Requests over the time from the first arrival to the last finish."""
    output_tokens_per_s: float
    """Tokens generated over the same time."""
    num_kv_blocks: int
    """KV blocks of the engine."""
    provenance: Mapping[str, float]
    """Share of the simulated seconds by where they are from: measured, family, estimated."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "rate": self.rate if math.isfinite(self.rate) else "inf",
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "latencies_s": dict(self.latencies_s),
            "num_kv_blocks": self.num_kv_blocks,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Return what `to_json` was made of."""
        return cls(**{**data, "rate": float(data["rate"])})


def evaluate(candidate: Candidate, workload: Workload, rate: float) -> Evaluation | str:
    """Simulate a candidate; return in one line why where it cannot be.

    Args:
        candidate: What serves.
        workload: The requests as they arrive.
        rate: How many a second they are in the mean.
    """
    try:
        latency, config = _load(candidate)
        # Shares are of this simulation alone.
        latency.priced_ns.update(dict.fromkeys(latency.priced_ns, 0.0))
        summary = simulate(workload, latency, config).summary()
    except DoolyError as error:
        return " ".join(str(error).split())
    statistics = (name.partition("_") for name in LIMITED)
    latencies_s = {f"{metric}_{statistic}": summary[f"{metric}_s"][statistic] for metric, _, statistic in statistics}
    throughput = summary["throughput"]
    rates = (throughput["requests_per_s"], throughput["output_tokens_per_s"])
    return Evaluation(
        rate, latencies_s, *rates, config.num_kv_blocks, {str(source): share for source, share in latency.provenance.items()}
    )


@lru_cache(maxsize=_LOADED)
def _load(candidate: Candidate) -> tuple[LatencyModel, SchedulerConfig]:
    latency = load_latency_model(
        model=candidate.model, serving=candidate.serving, hardware=candidate.hardware, interconnect=candidate.interconnect
    )
    return latency, scheduler_config(candidate.serving, latency)
