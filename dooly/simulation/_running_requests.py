"""The running requests of an engine: what each gets of a step's tokens and KV blocks, and who gives way where blocks lack.

State lies in arrays indexed by a request's position in the workload, so a step costs a few array operations at any batch size.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._budget import within_budget
from dooly.simulation._columns import column
from dooly.simulation._make_kv_cache import make_kv_cache
from dooly.simulation._under_way import UnderWay

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


class RunningRequests:
    """What a scheduler knows of its requests, and how it serves those that run."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig) -> None:
        """Start with none running and none waiting."""
        self.waiting: deque[int] = deque()
        self.num_preemptions = 0
        self._config = config
        self._kv_cache = make_kv_cache(requests, config)
        self._running = np.empty(0, np.int64)
        self._num_prompt_tokens = column(requests, "num_prompt_tokens").astype(np.int64)
        self._num_total_tokens = self._num_prompt_tokens + column(requests, "num_output_tokens")
        self._num_tokens = self._num_prompt_tokens.copy()  # known so far: the prompt and what was generated
        self._num_computed_tokens = np.zeros(len(requests), np.int64)
        self._num_prefill_tokens = np.zeros(len(requests), np.int64)  # known when the request was admitted last
        self._under_way = UnderWay()
        self._defers = False
        """Whether the step that is being decided holds prompts back."""
        self._priorities: list[int] = column(requests, "priority").tolist()
        self._arrivals_ns = [0] * len(requests)
        """When each request arrived, of those that were let in."""

    def _wait(self, request: int) -> None:
        """Put a request behind all that wait, or in order of priority."""
        if self._config.policy == "priority":
            insort(self.waiting, request, key=self._turn)
        else:
            self.waiting.append(request)

    def _turn(self, request: int) -> tuple[int, int, int]:
        """Return what orders requests by priority: who is served first has the lowest, who is preempted first the highest."""
        return self._priorities[request], self._arrivals_ns[request], request

    def _serve_running(self, chunk_limit: int) -> tuple[Counts, Counts, Counts]:
        """Grant tokens and blocks to the running requests, evicting the last of them while blocks lack.

        Returns:
            The tokens that each running request lacks, which of them are scheduled, and the tokens granted to each of these.
        """
        running = self._running
        computed = self._num_computed_tokens[running]
        wanted = self._wanted(running, computed)
        if self._defers:
            wanted = np.where(self._decodes_now(running), wanted, 0)
        limited = np.minimum(wanted, chunk_limit)
        if self._config.policy == "priority":
            granted = self._serve_by_priority(computed, limited)
        else:
            granted = within_budget(self._kv_cache, running, computed, limited, self._config.token_budget)
            granted = granted[: self._reserve_for_running(computed + granted)]
        is_scheduled = granted > 0
        return wanted, self._running[is_scheduled], granted[is_scheduled]

    def _decodes_now(self, running: Counts) -> npt.NDArray[np.bool_]:
        """Return whether requests have computed all that was known of them when they were admitted."""
        decodes: npt.NDArray[np.bool_] = self._num_computed_tokens[running] >= self._num_prefill_tokens[running]
        return decodes

    def _wanted(self, running: Counts, computed: Counts) -> Counts:
        """Return the tokens that running requests could compute, of which so many are computed."""
        known = self._num_tokens[running]
        return np.where(known < self._num_total_tokens[running], known - computed, 0)

    def _serve_by_priority(self, computed: Counts, wanted: Counts) -> Counts:
        """Grant tokens and blocks to the running requests, preempting those of the lowest priority while blocks lack.

        One that is to give way may have been served already in this step: what it got is granted to others. Where it is the very
        one that lacks blocks, those behind it are not served.
        """
        running, granted, num_served, num_granted = self._running, np.zeros_like(wanted), 0, 0
        while num_served < running.size:
            budget = self._config.token_budget - int(granted[:num_granted].sum())
            rest = slice(num_granted, None)
            granted[rest] = within_budget(self._kv_cache, running[rest], computed[rest], wanted[rest], budget)
            num_served += self._kv_cache.extend(running[num_served:], (computed + granted)[num_served:])
            if num_served == running.size:
                break
            num_granted = num_served + 1  # the one that lacks blocks gets no more of what is freed than it was to get
            _, place = max((self._turn(request), place) for place, request in enumerate(running.tolist()))
            self._evict(running[place : place + 1], int(granted[place]) if place < num_served else 0)
            if place == num_served:
                granted[place:] = 0
            running, computed, wanted, granted = (np.delete(each, place) for each in (running, computed, wanted, granted))
            if place == num_served:
                break
            num_granted -= place < num_served
            num_served -= place < num_served
        self._running = running
        return granted

    def _evict(self, victim: Counts, num_granted: int = 0) -> None:
        """Let a running request, which this step may have granted tokens already, start over, but for blocks that it finds again.

        It waits in order of the policy.
        """
        self._kv_cache.release(victim, self._num_final_tokens(victim, num_granted))
        self._num_computed_tokens[victim] = 0
        self.num_preemptions += 1
        if self._config.policy == "priority":
            self._wait(int(victim[0]))
        else:
            self.waiting.appendleft(int(victim[0]))

    def _num_final_tokens(self, victim: Counts, num_granted: int) -> Counts:
        """Return how many tokens are known and computed, or under way, of a request that this step has granted so many."""
        under_way = self._under_way
        num_unknown = under_way.generates(victim) if num_granted else under_way.holds_input_of(victim)
        return self._num_computed_tokens[victim] + (num_granted - num_unknown)

    def _reserve_for_running(self, num_tokens: Counts) -> int:
        """Give the running requests blocks for so many tokens, in order; return how many of them keep running.

        While blocks lack, the last to be admitted gives way, be it the very request that lacks them.
        """
        num_served, num_kept = 0, self._running.size
        while num_served < num_kept:
            num_served += self._kv_cache.extend(self._running[num_served:num_kept], num_tokens[num_served:num_kept])
            if num_served < num_kept:
                num_kept -= 1
                self._evict(self._running[num_kept : num_kept + 1])
        self._running = self._running[:num_kept]
        return num_kept
