"""Continuous batching with a KV-cache or prefill policy.

What a policy keeps of a prompt is chosen behind the step that has computed it: from the next step on attention reads that and all
that came after, and when the step has run, the blocks that are not needed any more get free. A request that is preempted computes
all that is known of it as its prompt again, from which the policy then chooses anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.kv_policy import Term
from dooly.simulation._policy_kv_cache import PolicyKVCache
from dooly.simulation._policy_step import PolicyStep
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._steps import Progress, ScheduledStep
    from dooly.simulation._workload import Request


class PolicyScheduler(Scheduler):
    """A scheduler of an engine with a policy; it is called as `Scheduler` is."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig) -> None:
        """Create a scheduler for requests that `add` will let in; `config.kv_policy` says what is kept of them.

        Raises:
            WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
        """
        assert config.kv_policy is not None
        super().__init__(requests, config)
        self._policy = config.kv_policy
        self._num_unread_tokens = np.zeros(len(requests), np.int64)
        """Tokens of each request's prompt that its attention reads no more."""
        self._num_found_tokens = np.full(len(requests), -1, np.int64)
        """Tokens of each request's prompt that were found in the prefix cache; -1 for those that have not begun."""
        self._num_launches = 0
        self._pruned_by = np.zeros(len(requests), np.int64)
        """The launch under way that ends each request's prompt, whose blocks get free when it has run; 0 without one."""

    def schedule(self) -> PolicyStep:
        """Decide the next step as `Scheduler` does, and say what its attention reads."""
        step = super().schedule()
        begin = self._num_found_tokens[step.requests] < 0
        self._num_found_tokens[step.requests[begin]] = step.num_computed_tokens[begin]
        cached = 2 * step.num_computed_tokens
        if isinstance(self._kv_cache, PolicyKVCache):
            cached = self._kv_cache.num_half_tokens(step.requests, step.num_computed_tokens)
        return PolicyStep.of(
            step,
            policy=self._policy,
            num_unread_tokens=self._num_unread_tokens[step.requests],
            num_prefill_tokens=self._num_prefill_tokens[step.requests],
            num_found_tokens=self._num_found_tokens[step.requests],
            num_cached_half_tokens=cached,
            num_layers=self._config.num_attention_layers,
        )

    def _decode_step(self, requests: Counts, granted: Counts) -> ScheduledStep:
        """Return a step, which is not repeated where it ends a prompt, nor while one under way is to free blocks."""
        step = super()._decode_step(requests, granted)
        is_alone = self._pruned_by[self._running].any() or not self._decodes_now(self._running).all()
        return replace(step, max_num_steps=1) if is_alone else step

    def _evict(self, victim: Counts, num_granted: int = 0) -> None:
        super()._evict(victim, num_granted)
        self._num_unread_tokens[victim] = self._pruned_by[victim] = 0
        self._num_found_tokens[victim] = -1

    def advance(self, step: ScheduledStep, num_steps: int = 1) -> Progress:
        """Take a scheduled step's tokens for granted, and what the policy chooses of prompts that it ends."""
        assert isinstance(step, PolicyStep)
        progress = super().advance(step, num_steps)
        self._num_launches += 1
        ended = step.requests[step.ends_prompt]
        num_dropped = self._num_dropped(ended)
        if self._policy.changes(Term.READS):
            self._num_unread_tokens[ended] = num_dropped
        if self._policy.changes(Term.BLOCKS):
            self._pruned_by[ended[num_dropped > 0]] = self._num_launches
        return progress._replace(launch=self._num_launches)

    def _num_dropped(self, requests: Counts) -> Counts:
        """Return how many tokens the policy drops of requests' prompts, shape (num_reqs,)."""
        numbers = self._num_prefill_tokens[requests].tolist()
        return np.array([number - self._policy.num_kept(number) for number in numbers], np.int64)

    def retire(self, progress: Progress) -> Progress:
        """Free what is not kept of prompts that the step has ended, and let go of the requests that have ended."""
        pruned = progress.requests[self._pruned_by[progress.requests] == progress.launch]
        if progress.launch and pruned.size:
            assert isinstance(self._kv_cache, PolicyKVCache)
            self._kv_cache.drop(pruned, self._num_dropped(pruned), self._num_computed_tokens[pruned])
            self._pruned_by[pruned] = 0
        return super().retire(progress)
