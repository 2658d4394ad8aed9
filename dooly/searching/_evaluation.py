"""One simulation of a search: a candidate at one request rate. It runs in any process, which loads each candidate once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dooly.engines import ServingConfig
from dooly.errors import DoolyError
from dooly.latency import slowed_host
from dooly.predict import LatencyModel, load_latency_model, with_limits
from dooly.searching._limits import LIMITED
from dooly.simulation import SchedulerConfig, check_acts, load_compiled_loop, scheduler_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.engines import ModelSource
    from dooly.predict import Interconnect
    from dooly.searching._candidate import Candidate
    from dooly.simulation import Workload

_LOADED = 128
"""Candidates whose latency models a process keeps."""
_LIMITS = (
    *("max_num_batched_tokens", "max_num_seqs", "max_cudagraph_capture_size"),
    *("kv_cache_memory_bytes", "num_gpu_blocks_override", "gpu_memory_utilization"),
    *("enable_prefix_caching", "async_scheduling", "kv_policy"),
)
"""Settings that change no operation."""


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
    extrapolated: float | None = None
    """Share of them that is of steps beyond what was measured; None where no records say how far that is."""
    notes: tuple[str, ...] = ()
    """What is doubtful in the measurements that the latencies are from."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "rate": self.rate if math.isfinite(self.rate) else "inf",
            "requests_per_s": self.requests_per_s,
            "output_tokens_per_s": self.output_tokens_per_s,
            "latencies_s": dict(self.latencies_s),
            "num_kv_blocks": self.num_kv_blocks,
            "provenance": dict(self.provenance),
            "extrapolated": self.extrapolated,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        """Return what `to_json` was made of."""
        return cls(**{**data, "rate": float(data["rate"]), "notes": tuple(data.get("notes", ()))})


def evaluate(candidate: Candidate, workload: Workload, rate: float) -> Evaluation | str:
    """Simulate a candidate; return in one line why where it cannot be.

    Args:
        candidate: What serves.
        workload: The requests as they arrive.
        rate: How many a second they are in the mean.
    """
    try:
        candidate.model.check_length(candidate.serving.max_model_len)
        check_acts(candidate.serving.kv_policy, workload)
        latency, config = _load(candidate)
        latency.reset_account()
        summary = candidate.fleet.serve(workload, latency, config, candidate.serving).result.summary()
    except DoolyError as error:
        return " ".join(str(error).split())
    statistics = (name.partition("_") for name in LIMITED)
    latencies_s = {f"{metric}_{statistic}": summary[f"{metric}_s"][statistic] for metric, _, statistic in statistics}
    throughput = summary["throughput"]
    rates = (throughput["requests_per_s"], throughput["output_tokens_per_s"])
    provenance = {str(source): share for source, share in latency.provenance.items()}
    doubts = (latency.extrapolated_share, latency.notes)
    return Evaluation(rate, latencies_s, *rates, config.num_kv_blocks, provenance, *doubts)


@lru_cache(maxsize=_LOADED)
def _load(candidate: Candidate) -> tuple[LatencyModel, SchedulerConfig]:
    serving = candidate.serving
    plain: dict[str, Any] = {field.name: field.default for field in fields(ServingConfig) if field.name in _LIMITS}
    alike = replace(serving, **plain)
    shared = _load_operations(candidate.model, alike, candidate.hardware, candidate.interconnect, candidate.host_slowdown)
    latency = with_limits(shared, serving)
    return latency, scheduler_config(serving, latency)


@lru_cache(maxsize=_LOADED)
def _load_operations(
    model: ModelSource, serving: ServingConfig, hardware: str, interconnect: Interconnect | None, host_slowdown: float | None
) -> LatencyModel:
    """Return the latencies that candidates share which differ in limits only."""
    load_compiled_loop()
    latency = load_latency_model(model=model, serving=serving, hardware=hardware, interconnect=interconnect)
    latency.host = slowed_host(latency.host, host_slowdown)
    return latency
