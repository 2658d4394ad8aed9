"""Continuous batching as Transformers (5.19) schedules it: its default scheduler, `fifo`, with blocks that requests do not share.

Each step takes requests that decode, then those whose prompts are computed in part, then waiting ones, while its tokens and
requests last. What finds no free block is passed over, and others behind it are served. Where few blocks are free, prompts wait
for those that decode. Running requests that were passed over start over, the latest first, until the rest would find their
blocks; they wait behind all others, and nobody is admitted before a request has ended.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.errors import InvalidInputError, WorkloadError
from dooly.kv_cache_groups import FULL_ATTENTION
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._scheduler_config import SchedulerConfig
from dooly.simulation._steps import ScheduledStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._remote_kv import RemoteKV
    from dooly.simulation._steps import Progress
    from dooly.simulation._workload import Request

_SAFETY_MARGIN = 0.15
"""Share of the blocks below which prompts wait: Transformers' own default."""
_NOT_THERE = (
    *("max_num_active_seqs", "max_num_scheduled_tokens", "enable_chunked_prefill", "long_prefill_token_threshold"),
    *("long_prefill_token_threshold_adaptive", "prefill_schedule_interval", "scheduler_reserve_full_isl", "watermark", "policy"),
    *("async_scheduling", "speculative", "kv_policy"),
)
"""Settings of vLLM's scheduler that this one has not."""


class _Candidates(NamedTuple):
    """What one pass over the requests found."""

    served: list[tuple[int, int]]
    """Requests that are scheduled, and the tokens of each."""
    starved: list[tuple[int, int]]
    """Running requests that found no block, and the tokens that each was to get."""
    has_failed: bool
    """Whether any request found no block."""


class TransformersScheduler(Scheduler):
    """Decides which tokens each step computes, as Transformers does; called as `Scheduler` is."""

    caches_prefixes = False
    follows_vllm = False

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig, remote: RemoteKV | None = None) -> None:
        """Create a scheduler for requests that `add` will let in.

        Args:
            requests: The whole workload.
            config: The engine's settings.
            remote: Must be None: KV caches come from no other engine.

        Raises:
            InvalidInputError: A setting is asked for that this scheduler has not.
            WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
        """
        plain = SchedulerConfig(config.max_model_len, config.num_kv_blocks)
        for name in _NOT_THERE:
            if getattr(config, name) != getattr(plain, name):
                raise InvalidInputError(f"SchedulerConfig: {name}: Transformers' scheduler has no such setting; leave it out")
        if config.enable_prefix_caching or config.kv_cache_groups != FULL_ATTENTION or remote is not None:
            raise InvalidInputError(
                "SchedulerConfig: Transformers' scheduler is simulated where all layers have full attention, and without prefix "
                "caching or KV caches of other engines; set enable_prefix_caching to False, or choose another model or engine"
            )
        super().__init__(requests, config)
        self._admits = True
        """Whether waiting requests are looked at: not from when one has started over until one has ended."""

    def schedule(self) -> ScheduledStep:
        """Decide the next step and reserve its KV blocks. At least one request must be unfinished."""
        found = self._pass_over()
        while not found.served and found.has_failed:
            if not self._start_over(found.starved):
                raise WorkloadError(
                    "KV cache: no request finds a block, and none can give way; give it more, or shorten requests"
                )
            found = self._pass_over()
        self._start_over(found.starved)
        requests, granted = (np.array(column, np.int64) for column in zip(*found.served, strict=True))
        first_scheduled = [request for request, _ in found.served if not self._was_scheduled[request]]
        self._was_scheduled[first_scheduled] = True
        computed = self._num_computed_tokens[requests]
        may_repeat = not self.waiting and requests.size == self._running.size and bool(self._decodes_now(requests).all())
        num_steps = 1
        if may_repeat:
            num_left = int((self._num_total_tokens[requests] - self._num_tokens[requests]).min())
            num_steps += self._kv_cache.steps_within(requests, computed + 1, num_left - 1)
        return ScheduledStep(requests, granted, computed, first_scheduled, num_steps)

    def _pass_over(self) -> _Candidates:
        """Give tokens and blocks to requests in turn, and admit those of them that wait."""
        decodes = self._decodes_now(self._running)
        waiting = list(self.waiting) if self._admits else []
        num_running, capacity = self._running.size, self._kv_cache.capacity
        turns = [*self._running[decodes].tolist(), *self._running[~decodes].tolist(), *waiting]
        num_decodes, has_room = int(decodes.sum()), self._kv_cache.num_free / capacity >= _SAFETY_MARGIN
        tokens, reads, seats = self._config.max_num_batched_tokens, capacity * self._config.block_size, self._config.max_num_seqs
        found = _Candidates([], [], has_failed=False)
        for place, request in enumerate(turns):
            if not has_room and found.served and place >= num_decodes:
                break
            computed = int(self._num_computed_tokens[request])
            count = min(int(self._num_tokens[request]) - computed, tokens)
            if reads < computed:
                continue
            if not self._kv_cache.extend(np.array([request]), np.array([computed + count])):
                found = found._replace(has_failed=True)
                if place < num_running:
                    found.starved.append((request, count))
                continue
            found.served.append((request, count))
            tokens, reads, seats = tokens - count, reads - computed, seats - 1
            if min(tokens, reads, seats) <= 0:
                break
        self._take_in({request for request, _ in found.served} & set(waiting))
        return found

    def _take_in(self, admitted: set[int]) -> None:
        """Let waiting requests run, in the order in which they wait."""
        if admitted:
            new = np.array([request for request in self.waiting if request in admitted], np.int64)
            self._num_prefill_tokens[new] = self._num_tokens[new]
            self._running = np.concatenate((self._running, new))
            self.waiting = deque(request for request in self.waiting if request not in admitted)

    def _start_over(self, starved: list[tuple[int, int]]) -> bool:
        """Have running requests that found no block start over, the latest first, until the rest would find theirs.

        Returns:
            Whether any does.
        """
        given_way: list[int] = []
        while starved and self._running.size - len(given_way) > 1 and not self._would_fit(starved):
            request, _ = starved.pop()
            given_way.append(request)
            self._kv_cache.release(np.array([request]), np.zeros(1, np.int64))
        if given_way:
            self._running = self._running[~np.isin(self._running, given_way)]
            self._num_computed_tokens[given_way] = 0
            self.num_preemptions += len(given_way)
            self.waiting.extend(reversed(given_way))
            self._admits = False
        return bool(given_way)

    def _would_fit(self, starved: list[tuple[int, int]]) -> bool:
        """Tell whether requests would all find the blocks for so many more tokens."""
        requests = np.array([request for request, _ in starved], np.int64)
        num_tokens = self._num_computed_tokens[requests] + np.array([count for _, count in starved], np.int64)
        return self._kv_cache.num_lacking(requests, num_tokens) <= self._kv_cache.num_free

    def retire(self, progress: Progress) -> Progress:
        """Let go of the requests that steps have ended, once they have run; return what they brought about."""
        self._admits = self._admits or progress.finished.size > 0
        return super().retire(progress)
