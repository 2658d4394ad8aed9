"""Continuous batching as vLLM v1 (0.32) schedules it: synchronous or ahead, in order of arrival or of priority.

Each step serves the running requests first, in order of admission, then admits waiting ones while the token budget, the request
slots and the KV blocks last. A running request that finds no free block evicts the request admitted last, which starts over.

How long a request is stands in the workload, so what a step brings about is known as soon as it is scheduled. A synchronous
engine accounts for it at once; one that schedules ahead takes the tokens for granted (`advance`), and frees what has ended only
when the step has run (`retire`). A request whose last token is under way keeps its slot and blocks, and is not scheduled again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._make_kv_cache import refuse_too_long
from dooly.simulation._prefill_throttle import PrefillThrottle
from dooly.simulation._running_requests import RunningRequests
from dooly.simulation._steps import Progress, ScheduledStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._remote_kv import RemoteKV
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


class Scheduler(RunningRequests):
    """Decides which tokens each step computes. Call `add`, then `schedule` and `complete`, or `advance` and `retire`, in turn."""

    caches_prefixes = True
    """Whether prompts that begin alike may share blocks."""
    follows_vllm = True
    """Whether its rules are those that the compiled loop follows too."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig, remote: RemoteKV | None = None) -> None:
        """Create a scheduler for requests that `add` will let in.

        Args:
            requests: The whole workload.
            config: The engine's settings.
            remote: What other engines have computed of the requests, or load when these have ended; None for nothing.

        Raises:
            WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
        """
        super().__init__(requests, config)
        self._watermark_blocks = int(config.watermark * config.num_kv_blocks)
        self._was_scheduled = np.zeros(len(requests), np.bool_)
        self._has_finished = np.zeros(len(requests), np.bool_)
        self._throttle = PrefillThrottle(config.prefill_schedule_interval)
        self._remote = remote
        refuse_too_long(requests, self._kv_cache, config)

    @property
    def has_unfinished(self) -> bool:
        """Whether an added request has not finished."""
        return bool(self.waiting) or self._running.size > 0 or bool(self._remote and self._remote.num_blocked)

    @property
    def num_waiting(self) -> int:
        """Requests let in that no step works on: not admitted yet, preempted, or with their KV cache on its way."""
        return len(self.waiting) + (0 if self._remote is None else self._remote.num_blocked)

    @property
    def num_running(self) -> int:
        """Admitted requests that have not finished and were not preempted."""
        return self._running.size

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that requests hold, from 0 to 1."""
        return 1 - self._kv_cache.num_free / self._kv_cache.capacity

    def add(self, request: int, arrival_ns: int = 0) -> None:
        """Let in the request at this position of the workload, behind all that wait, or in order of priority.

        Those of one priority go by `arrival_ns`, which nothing else heeds; those that arrive together, by position.
        """
        if not self.has_unfinished:
            self._throttle.start_wave()
        self._arrivals_ns[request] = arrival_ns
        self._wait(request)

    def follow(self, num_steps: int) -> None:
        """Count steps as other ranks do that step together, which have scheduled so many since all were idle."""
        self._throttle.start_wave(num_steps)

    def schedule(self) -> ScheduledStep:
        """Decide the next step and reserve its KV blocks. At least one request must be unfinished.

        The step is empty where the last tokens of all requests are under way.
        """
        chunk_limit = self._chunk_limit()
        self._kv_cache.start_step()
        self._defers = self._throttle.defers() and bool(self._decodes_now(self._running).any())
        num_preemptions = self.num_preemptions
        wanted, requests, granted = self._serve_running(chunk_limit)
        first_scheduled: list[int] = []
        if self.num_preemptions == num_preemptions:
            budget = self._config.token_budget - int(granted.sum())
            admitted, counts = self._admit(budget, chunk_limit, requests)
            if admitted:
                first_scheduled = [request for request in admitted if not self._was_scheduled[request]]
                self._was_scheduled[first_scheduled] = True
                new = np.array(admitted, np.int64)
                requests = np.concatenate((requests, new))
                granted = np.concatenate((granted, np.array(counts, np.int64)))
                self._running = np.concatenate((self._running, new))
            if self._throttle.is_active and not self._defers:
                self._throttle.note(is_full=bool(self.waiting))
            if not admitted and wanted.max(initial=0) == 1:
                return self._decode_step(requests, granted)
        return ScheduledStep(requests, granted, self._num_computed_tokens[requests], first_scheduled, 1)

    def _chunk_limit(self) -> int:
        """Return the most tokens of one request: a long prompt is held back for the sake of the others only."""
        config, num_unfinished = self._config, self.num_running + self.num_waiting
        if not config.long_prefill_token_threshold or num_unfinished <= 1:
            return config.max_model_len
        fair_share = config.max_num_batched_tokens // num_unfinished if config.long_prefill_token_threshold_adaptive else 0
        return max(config.long_prefill_token_threshold, fair_share)

    def _admit(self, budget: int, chunk_limit: int, served: Counts) -> tuple[list[int], list[int]]:
        """Take requests off the waiting queue, beside those served in this step; return them and the tokens granted to each."""
        config = self._config
        admitted, has_room = self._admit_loaded(budget)
        counts = [1] * len(admitted)
        budget -= len(admitted)
        while has_room and budget > 0 and self.waiting and self._running.size + len(admitted) < config.num_seats:
            request = self.waiting[0]
            num_tokens = int(self._num_tokens[request])
            num_cached = self._kv_cache.look_up(request, num_tokens)
            if self._remote is not None and self._remote.num_tokens(request) > num_cached:
                if not self._start_load(request, num_cached, admitted):
                    break
                continue
            if self._defers and num_tokens - num_cached > 1:
                break
            count = min(self._wanted_first(num_tokens, num_cached, served), chunk_limit)
            may_split = config.enable_chunked_prefill and count <= num_tokens - num_cached
            if count > budget and not may_split:
                break
            end = self._kv_cache.aligned(request, num_cached, num_cached + min(count, budget))
            num_room = num_tokens if config.scheduler_reserve_full_isl else end
            num_spare = self._watermark_blocks if self._running.size or admitted else 0
            if end == num_cached or not self._kv_cache.reserve(request, end, num_room, num_spare):
                break
            if self._remote is not None:
                self._remote.skip(request)
            self._num_computed_tokens[request] = num_cached
            self._num_prefill_tokens[request] = num_tokens
            count = end - num_cached
            budget -= count
            admitted.append(self.waiting.popleft())
            counts.append(count)
        return admitted, counts

    def _wanted_first(self, num_tokens: int, num_cached: int, served: Counts) -> int:  # noqa: ARG002 - for those that draft
        """Return the tokens that a waiting request of so many could compute, beside those served in this step."""
        return num_tokens - num_cached

    def _admit_loaded(self, budget: int) -> tuple[list[int], bool]:
        """Return the requests whose KV cache has come from another engine, each of which computes its last known token.

        Returns:
            These, and whether others may be admitted: not where too few blocks are free for one of these, though it takes none.
        """
        admitted: list[int] = []
        if self._remote is None:
            return admitted, True
        limit = min(budget, self._config.num_seats - self._running.size)
        while len(admitted) < limit and self._remote.has_loaded:
            if (self._running.size or admitted) and self._kv_cache.num_free < self._watermark_blocks:
                return admitted, False
            request = self._remote.take_loaded()
            self._num_computed_tokens[request] = self._num_tokens[request] - 1
            admitted.append(request)
        return admitted, True

    def _start_load(self, request: int, num_cached: int, admitted: list[int]) -> bool:
        """Let the first of the waiting requests load its KV cache, if there is room beside what prefills in parts still need."""
        assert self._remote is not None
        served = np.concatenate((self._running, np.array(admitted, np.int64)))
        num_spare = self._kv_cache.num_lacking(served, self._num_tokens[served])
        num_spare += self._watermark_blocks if served.size else 0
        num_tokens = int(self._num_tokens[request])
        if not self._kv_cache.reserve(request, num_tokens, num_tokens, num_spare, is_loaded=True):
            return False
        self._remote.start(self.waiting.popleft(), num_cached)
        return True

    def finish_load(self, request: int) -> None:
        """Note that a request's KV cache has come; it is admitted before those that wait."""
        assert self._remote is not None
        self._kv_cache.finish_load(request, self._remote.finish(request))

    def let_go(self, request: int) -> None:
        """Free the blocks of a request that has ended, and whose KV cache another engine has loaded."""
        self._kv_cache.release(np.array([request], np.int64), self._num_total_tokens[[request]] - 1)

    def _decode_step(self, requests: Counts, granted: Counts) -> ScheduledStep:
        """Return a step in which every running request lacks one token, and how often it can be repeated.

        Until one finishes or the blocks run out, the next step serves the same requests: whatever kept the first waiting request
        out (no slot, no budget, too few blocks) still does, as the free blocks only dwindle where none are recycled. A load
        that this very step has begun may end in any that follows: of these, nothing is known yet.
        """
        computed = self._num_computed_tokens[requests]
        max_num_steps = 1
        may_admit = (
            (self._kv_cache.recycles or self._throttle.is_active) and self.waiting and self._running.size < self._config.num_seats
        )
        is_loading = self._remote is not None and self._remote.has_started
        all_decode = requests.size == self._running.size and np.all(computed >= self._num_prompt_tokens[requests])
        if all_decode and not may_admit and not is_loading:
            num_left = int((self._num_total_tokens[requests] - self._num_tokens[requests]).min())
            max_num_steps += self._kv_cache.steps_within(requests, computed + 1, num_left - 1)
        return ScheduledStep(requests, granted, computed, [], max_num_steps)

    def complete(self, step: ScheduledStep, num_steps: int = 1) -> Progress:
        """Account for a scheduled step, done once or several times over.

        Args:
            step: What `schedule` returned last.
            num_steps: From 1 to `step.max_num_steps`.

        Returns:
            Which requests got their first and their last token, at the end of the last of these steps.
        """
        return self.retire(self.advance(step, num_steps))

    def advance(self, step: ScheduledStep, num_steps: int = 1) -> Progress:
        """Take a scheduled step's tokens for granted, and return what it will bring about as far as that is known."""
        requests = step.requests
        computed = step.num_computed_tokens + step.num_new_tokens
        known = self._num_tokens[requests] + (num_steps - 1)
        if num_steps > 1:
            self._throttle.repeat(num_steps - 1, is_full=bool(self.waiting))
            self._kv_cache.extend_steps(requests, computed, num_steps - 1)
            computed += num_steps - 1
        self._num_computed_tokens[requests] = computed
        # A step that computes all known tokens of a request generates its next one.
        generated = computed == known
        first_token = requests[generated & (known == self._num_prompt_tokens[requests])]
        known += generated
        self._num_tokens[requests] = known
        is_finished = known == self._num_total_tokens[requests]
        progress = Progress(requests, computed, first_token, requests[is_finished], requests[generated], num_steps)
        self._under_way.launch(progress)
        return progress

    def retire(self, progress: Progress) -> Progress:
        """Let go of the requests that steps have ended, once they have run; return what they brought about."""
        self._under_way.retire(progress)
        self._kv_cache.settle(progress.requests, progress.num_computed_tokens)
        if progress.finished.size:
            self._end(progress.finished, self._num_total_tokens[progress.finished] - 1)
        return progress

    def _end(self, finished: Counts, num_final: Counts) -> None:
        """Let go of requests of which so many tokens are computed and can be found again."""
        if self._remote is None or not self._remote.keeps_finished:
            self._kv_cache.release(finished, num_final)
        is_evicted = self._num_computed_tokens[finished] == 0
        if is_evicted.any():
            # While their last tokens were under way.
            ended = set(finished[is_evicted].tolist())
            self.waiting = deque(request for request in self.waiting if request not in ended)
        self._has_finished[finished] = True
        self._running = self._running[~self._has_finished[self._running]]
