"""Continuous batching with speculative decoding, as vLLM v1 (0.32) schedules it.

A decode computes the token sampled last and drafts behind it; how many of these are accepted is known only when the step has run.
So what a request has computed counts drafts under way as accepted, as the engine does, and is taken back for those that are not.
A request that decodes computes one token more than what is known and under way, however many drafts lie in between.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.simulation._acceptance import Acceptance
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._steps import Progress, ScheduledStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


class _Flight(NamedTuple):
    """A step that was launched and has not run: what its requests can get, shape (num_generating,) each."""

    requests: Counts
    """Requests that get a token at least."""
    num_drafts: Counts
    """Drafts of each in the step."""
    num_verified: Counts
    """Those that can be accepted: none where a step was only filled up with as many."""
    num_preemptions: Counts
    """How often each had been preempted: where that has grown, what it had computed is gone."""


class SpeculativeScheduler(Scheduler):
    """A scheduler of an engine that drafts tokens; it is called as `Scheduler` is."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig) -> None:
        """Create a scheduler for requests that `add` will let in; `config.speculative` says how tokens are drafted.

        Raises:
            WorkloadError: A request is too long for the model or for an empty KV cache, and so could never finish.
        """
        assert config.speculative is not None
        super().__init__(requests, config)
        self._num_drafted = config.speculative.num_speculative_tokens
        self._acceptance = Acceptance(requests, config.speculative)
        self._decodes = np.zeros(len(requests), np.bool_)
        """Whether the latest step of a request that runs has computed all that was known, so that it has drafts."""
        self._num_preempted = np.zeros(len(requests), np.int64)
        self._num_cached_tokens = np.zeros(len(requests), np.int64)
        """Tokens of each request that runs, up to which its blocks can be found again."""
        self._flights: deque[_Flight] = deque()

    def _decodes_now(self, running: Counts) -> npt.NDArray[np.bool_]:
        decodes: npt.NDArray[np.bool_] = self._decodes[running]
        return decodes

    def _wanted(self, running: Counts, computed: Counts) -> Counts:
        """Return the tokens that running requests could compute: none where one under way is sure to be the last."""
        known, decodes = self._num_tokens[running], self._decodes[running]
        ends = decodes & (computed >= known) & (known + 1 >= self._num_total_tokens[running])
        wanted = np.where(decodes, np.where(ends, 0, 1 + self._num_drafted), known - computed)
        # The last token of the longest sequence is sampled, not computed.
        return np.asarray(np.minimum(wanted, self._config.max_model_len - 1 - computed))

    def _wanted_first(self, num_tokens: int, num_cached: int, served: Counts) -> int:
        """Return the tokens that a waiting request could compute; one that lacks one is filled up to what decodes compute."""
        padded = 1 + self._num_drafted
        beside_decodes = self._decodes[served].all() and (served.size > 0 or num_cached > 0)
        if num_tokens - num_cached == 1 and beside_decodes and num_cached + padded < self._config.max_model_len:
            return padded
        return num_tokens - num_cached

    def _evict(self, victim: Counts, num_granted: int = 0) -> None:
        super()._evict(victim, num_granted)
        self._num_preempted[victim] += 1
        self._num_cached_tokens[victim] = 0
        self._decodes[victim] = False

    def _num_final_tokens(self, victim: Counts, num_granted: int) -> Counts:
        """Return up to where the victim's blocks can be found again: what this step has granted counts as far as it is known."""
        computed = np.minimum(self._num_computed_tokens[victim] + num_granted, self._num_tokens[victim])
        return np.maximum(self._num_cached_tokens[victim], computed if num_granted else 0)

    def _decode_step(self, requests: Counts, granted: Counts) -> ScheduledStep:
        """Return a step: nobody knows what the next is before this one has run."""
        return ScheduledStep(requests, granted, self._num_computed_tokens[requests], [], 1)

    def schedule(self) -> ScheduledStep:
        """Decide the next step as `Scheduler` does, and say which of its tokens are drafts."""
        step = super().schedule()
        # Where a step computes more than is known of a request that did not decode yet, it is filled up.
        beyond = np.maximum(step.num_computed_tokens + step.num_new_tokens - self._num_tokens[step.requests], 0)
        drafts = np.where(self._decodes[step.requests], step.num_new_tokens - 1, beyond)
        return replace(step, num_draft_tokens=drafts)

    def advance(self, step: ScheduledStep, num_steps: int = 1) -> Progress:
        """Launch a scheduled step; what it brings about is known when it has run.

        Args:
            step: What `schedule` returned last.
            num_steps: 1.
        """
        requests = step.requests
        computed, known = step.num_computed_tokens + step.num_new_tokens, self._num_tokens[requests]
        decoded = self._decodes[requests]
        generates = decoded | (computed >= known)
        assert step.num_draft_tokens is not None
        num_drafts = step.num_draft_tokens[generates]
        generating = requests[generates]
        preempted = self._num_preempted[generating]
        self._flights.append(_Flight(generating, num_drafts, np.where(decoded[generates], num_drafts, 0), preempted))
        self._num_computed_tokens[requests] = computed
        self._decodes[requests] = generates
        self._num_cached_tokens[requests] = np.maximum(self._num_cached_tokens[requests], np.minimum(computed, known))
        none = requests[:0]
        return Progress(requests, computed, none, none, generating, num_steps)

    def retire(self, progress: Progress) -> Progress:
        """Account for the oldest step under way once it has run; return what it brought about."""
        flight = self._flights.popleft()
        goes_on = ~self._has_finished[flight.requests]
        requests, num_drafts, num_verified, num_preempted = (column[goes_on] for column in flight)
        known, total = self._num_tokens[requests], self._num_total_tokens[requests]
        num_accepted = self._acceptance.of(requests, known - self._num_prompt_tokens[requests])
        num_accepted = np.minimum(num_accepted, num_verified)
        num_tokens = np.minimum(known + 1 + num_accepted, total)
        self._num_tokens[requests] = num_tokens
        is_held = num_preempted == self._num_preempted[requests]
        held = requests[is_held]
        self._num_computed_tokens[held] -= (num_drafts - num_accepted)[is_held]
        if self._config.async_scheduling:
            self._num_cached_tokens[held] = num_tokens[is_held] - 1
        finished = requests[num_tokens == total]
        if finished.size:
            self._end(finished, self._num_cached_tokens[finished])
        first_token = requests[known == self._num_prompt_tokens[requests]]
        return progress._replace(first_token=first_token, finished=finished, generated=requests)
