"""What each term of a KV-cache or prefill policy contributes: the same workload served with one term more at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError
from dooly.kv_policy import CRITICAL_BLOCK_SIZE, NUM_DENSE_TOKENS, SEGMENT_SIZE, WINDOW_SIZE
from dooly.simulation._columns import column
from dooly.simulation._serving import scheduler_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.engines import ServingConfig
    from dooly.kv_policy import KVPolicy
    from dooly.predict import LatencyModel
    from dooly.simulation._results import SimulationResult
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Workload


@dataclass(frozen=True, slots=True)
class TermEffect:
    """A simulation with some of a policy's terms."""

    term: str
    """The term that it has more than the one before; `none` for the simulation without the policy."""
    ttft_s: float
    """Mean time to first token, in seconds."""
    tpot_s: float | None
    """Mean time per output token after the first, in seconds; None where no request has two."""
    output_tokens_per_s: float | None
    """Tokens generated over the time from the first arrival to the last finish."""
    num_at_once: int
    """Most requests between their first step and their last."""


def check_acts(policy: KVPolicy | None, workload: Workload) -> None:
    """Refuse a policy that changes nothing for any prompt.

    Raises:
        InvalidInputError: All prompts are too short for it.
    """
    if policy is None:
        return
    lengths = {request.num_prompt_tokens for request in workload.requests}
    if not any(map(policy.acts_on, lengths)):
        room = f"the window of {WINDOW_SIZE} tokens is always kept"
        if policy.scope is None:
            whole = f"the first {NUM_DENSE_TOKENS:,} tokens and the last segment, of up to {SEGMENT_SIZE}, are prefilled whole"
            room = f"{whole}, and the others choose blocks of {CRITICAL_BLOCK_SIZE}"
        raise InvalidInputError(f"--kv-budget: {policy} changes nothing for prompts of {max(lengths):,} tokens at most; {room}")


def policy_terms(
    serving: ServingConfig, latency: LatencyModel, serve: Callable[[SchedulerConfig], SimulationResult]
) -> tuple[TermEffect, ...]:
    """Simulate an engine without its policy, then with one term of it more at a time; the last has all, and is the policy's own.

    Args:
        serving: The engine's settings, with a policy.
        latency: Prices its steps. Its account afterwards is that of the last simulation.
        serve: Simulates the workload with the settings of a scheduler.

    Raises:
        InvalidInputError: There is no policy.
    """
    if serving.kv_policy is None:
        raise InvalidInputError("policy_terms: serving: has no kv_policy; give one")
    found = []
    for policy in serving.kv_policy.one_by_one():
        name = str(policy.terms[-1]) if policy.terms else "none"
        latency.reset_account()
        found.append(_effect(name, serve(scheduler_config(replace(serving, kv_policy=policy), latency))))
    return tuple(found)


def _effect(term: str, result: SimulationResult) -> TermEffect:
    summary = result.summary()
    rate = summary["throughput"]["output_tokens_per_s"]
    return TermEffect(term, summary["ttft_s"]["mean"], summary["tpot_s"]["mean"], rate, num_at_once(result))


def num_at_once(result: SimulationResult) -> int:
    """Return the most requests that were between their first step and their last token at one time."""
    starts, ends = np.sort(column(result.rows, "scheduled_s")), np.sort(column(result.rows, "finish_s"))
    return int((np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")).max())
