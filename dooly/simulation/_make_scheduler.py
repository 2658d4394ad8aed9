"""Which scheduler an engine's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.simulation._policy_scheduler import PolicyScheduler
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._speculative_scheduler import SpeculativeScheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._remote_kv import RemoteKV
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


def make_scheduler(requests: Sequence[Request], config: SchedulerConfig, remote: RemoteKV | None = None) -> Scheduler:
    """Return the scheduler for a workload: the one that follows drafts or a policy where there are any.

    Args:
        requests: The whole workload.
        config: The engine's settings.
        remote: As `Scheduler` has it.

    Raises:
        InvalidInputError: Drafts or a policy are asked for where KV caches come from other engines.
        WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
    """
    if config.kv_policy is not None and config.kv_policy.budget < 1:
        if remote is not None:
            raise InvalidInputError("SchedulerConfig: kv_policy: not simulated between prefill and decode replicas; leave it out")
        return PolicyScheduler(requests, config)
    if config.speculative is None:
        return Scheduler(requests, config, remote)
    if remote is not None:
        raise InvalidInputError(
            "SchedulerConfig: speculative: not simulated between prefill and decode replicas, which move KV caches; leave it out"
        )
    return SpeculativeScheduler(requests, config)
