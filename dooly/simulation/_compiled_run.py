"""Whole simulations by the compiled loop: which it can take, and what comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dooly.batch import Batch
from dooly.errors import OutOfDomainError
from dooly.simulation._columns import column
from dooly.simulation._compiled_state import new_state, settings_of
from dooly.simulation._counted_kv_cache import CountedKVCache
from dooly.simulation._make_kv_cache import make_kv_cache, refuse_too_long
from dooly.simulation._make_scheduler import scheduler_class
from dooly.simulation._timeline import refuse_unfinished
from dooly.simulation._token_gaps import GapCounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from dooly.latency import HostTimes, SheetBackend
    from dooly.prices import PriceSheet
    from dooly.simulation._compiled_state import LoopState
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._token_gaps import TokenGaps
    from dooly.simulation._workload import Request, Workload

    Longs = npt.NDArray[np.int64]


class Served(NamedTuple):
    """What a simulation found; times are nanoseconds, shape (num_requests,)."""

    arrival_ns: Longs
    """When each request arrived."""
    scheduled_ns: Longs
    """Start of the first step that computed some of its tokens."""
    first_token_ns: Longs
    """When its first token was out."""
    finish_ns: Longs
    """When its last was."""
    num_steps: int
    """Steps taken."""
    num_preemptions: int
    """How often a running request was evicted."""
    host_wait_ns: int
    """How long the device waited for its host."""
    power_limit_ns: int
    """What its power limit added to steps."""
    gaps: TokenGaps
    """Times between tokens."""


def serve_compiled(
    workload: Workload, latency: SheetBackend, sheet: PriceSheet, config: SchedulerConfig, host: HostTimes
) -> Served | None:
    """Serve a workload as the event loop in Python does, to the nanosecond; None where that alone can.

    It can where requests are served in order of arrival, none goes on from another's answer, steps hold no drafts, all of
    prompts is kept and computed, no setting limits them further, and the cache goes by counts.

    Raises:
        WorkloadError: A request is too long for the model or the KV cache, or can never finish.
        OutOfDomainError: A step cannot be priced.
    """
    requests = workload.requests
    if not scheduler_class(config.engine).follows_vllm:
        return None
    if config.policy != "fcfs" or config.speculative is not None or config.kv_policy is not None or any(column(requests, "turn")):
        return None
    lower_limits = (config.max_num_active_seqs, config.max_num_scheduled_tokens)
    if (
        config.long_prefill_token_threshold_adaptive
        or config.prefill_schedule_interval > 1
        or any(limit is not None for limit in lower_limits)
    ):
        return None
    kv_cache = make_kv_cache(requests, config)
    if not isinstance(kv_cache, CountedKVCache):
        return None
    refuse_too_long(requests, kv_cache, config)
    from dooly.simulation._compiled_loop import DONE, REFUSED, serve

    cap = latency.power_cap
    state = new_state(requests, config, sheet, cap, workload.concurrency)
    settings, gaps = settings_of(config, host, cap, is_closed=workload.concurrency is not None), GapCounts()
    reason, engine = None, state.engine
    while reason != DONE:
        reason = serve(state, settings, sheet.arrays)
        found = state.gaps[: int(engine["num_gaps"])]
        gaps.add(found["gap_ns"].copy(), found["count"].copy())
        engine["num_gaps"] = 0
        if reason == REFUSED:
            _refuse(requests, state, latency)
    latency.account(state.priced_ns)
    times = [state.requests[f"{name}_ns"] for name in ("arrival", "scheduled", "first_token", "finish")]
    counts = [int(engine[name]) for name in ("num_steps", "num_preemptions", "host_wait_ns", "power_limit_ns")]
    return Served._make([*times, *counts, gaps.total()])


def _refuse(requests: Sequence[Request], state: LoopState, latency: SheetBackend) -> None:
    """Raise what the backend says of a step that its sheet cannot price, or that no step has room for what waits."""
    if not state.engine["num_scheduled"]:
        refuse_unfinished(requests, state.requests["finish_ns"])
    places = state.places[: int(state.engine["num_scheduled"])]
    computed = state.requests["computed"][places["scheduled"]]
    batch = Batch(tuple(places["granted"].tolist()), tuple(computed.tolist()))
    latency.step_ns(batch)
    raise OutOfDomainError(f"step: {batch.num_tokens} tokens of {batch.num_reqs} requests are beyond the price sheet's limits")
