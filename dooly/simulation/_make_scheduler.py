"""Which scheduler an engine's settings ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.simulation._policy_scheduler import PolicyScheduler
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._speculative_scheduler import SpeculativeScheduler
from dooly.simulation._transformers_scheduler import TransformersScheduler

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dooly.simulation._remote_kv import RemoteKV
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request

_BY_ENGINE: Mapping[str, type[Scheduler]] = {"transformers": TransformersScheduler}
"""Schedulers of engines that do not schedule as vLLM does."""


def scheduler_class(engine: str) -> type[Scheduler]:
    """Return the scheduler of an engine: vLLM's for those whose own is not simulated."""
    return _BY_ENGINE.get(engine, Scheduler)


def scheduled_as(engine: str) -> str:
    """Return whose rules the schedule of an engine follows: `SchedulerConfig.engine`."""
    return engine if engine in _BY_ENGINE else "vllm"


def make_scheduler(requests: Sequence[Request], config: SchedulerConfig, remote: RemoteKV | None = None) -> Scheduler:
    """Return the scheduler for a workload: the engine's, or the one that follows drafts or a policy where there are any.

    Args:
        requests: The whole workload.
        config: The engine's settings.
        remote: As `Scheduler` has it.

    Raises:
        InvalidInputError: Drafts or a policy are asked for where KV caches come from other engines; or the engine has not what is
            asked for.
        WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
    """
    made = scheduler_class(config.engine)
    if made is not Scheduler:
        return made(requests, config, remote)
    if config.kv_policy is not None and config.kv_policy.budget < 1:
        if remote is not None:
            raise InvalidInputError(
                "SchedulerConfig: kv_policy: not simulated between prefill and decode replicas; set it to None"
            )
        return PolicyScheduler(requests, config)
    if config.speculative is None:
        return Scheduler(requests, config, remote)
    if remote is not None:
        raise InvalidInputError(
            "SchedulerConfig: speculative: not simulated between prefill and decode replicas, which move KV caches; leave it out"
        )
    return SpeculativeScheduler(requests, config)
