"""Requests and when they arrive: the simulator's input. Arrivals are integer nanoseconds from the workload's start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._columns import column, first_repeated

if TYPE_CHECKING:
    from collections.abc import Sequence

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Turn:
    """A request's place in a conversation, whose tokens it begins with: the turns before, their prompts and their answers."""

    conversation: int
    """Which conversation: the tokens of its turns, prompt and output, are the first of the same text."""
    follows: int | None = None
    """The `request_id` of the turn before; None for the first."""
    think_ns: int = 0
    """Nanoseconds that pass after the end of that one before this is sent, at least 0."""

    def __post_init__(self) -> None:
        if self.think_ns < 0 or (self.think_ns and self.follows is None):
            raise WorkloadError(
                f"conversation {self.conversation}: think_ns must be at least 0, and 0 for a first turn, got {self.think_ns}"
            )


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it arrives, how long its prompt is and how many tokens it asks for."""

    request_id: int
    """Unique within a workload."""
    arrival_ns: int
    """Nanoseconds from the workload's start, at least 0. A turn that follows another arrives no sooner."""
    num_prompt_tokens: int
    """At least 1."""
    num_output_tokens: int
    """Tokens generated, no more and no fewer; at least 1."""
    prefix_ids: tuple[int, ...] = ()
    """What the prompt begins with, an id for each `prefix_block_size` tokens: prompts whose ids begin alike begin with the same
    tokens. What lies behind is the request's own. An id may reach beyond the prompt's end."""
    prefix_block_size: int = 512
    """Tokens that an id stands for; Mooncake's traces have 512."""
    priority: int = 0
    """Where the scheduler's policy is `priority`: lower is served first, and preempted last."""
    turn: Turn | None = None
    """Its place in a conversation, where it is part of one."""

    def __post_init__(self) -> None:
        if self.arrival_ns < 0:
            raise WorkloadError(f"request {self.request_id}: arrival_ns must be at least 0, got {self.arrival_ns}")
        if self.num_prompt_tokens < 1 or self.num_output_tokens < 1:
            raise WorkloadError(
                f"request {self.request_id}: num_prompt_tokens and num_output_tokens must be at least 1, "
                f"got {self.num_prompt_tokens} and {self.num_output_tokens}"
            )
        if self.prefix_block_size < 1:
            raise WorkloadError(f"request {self.request_id}: prefix_block_size must be at least 1, got {self.prefix_block_size}")
        num_shared = len(self.prefix_ids) * self.prefix_block_size
        if self.turn is not None and num_shared > self.num_prompt_tokens:
            raise WorkloadError(
                f"request {self.request_id}: its prefix_ids of {num_shared} tokens must lie within the prompt of "
                f"{self.num_prompt_tokens}, as it is part of a conversation"
            )


PLAIN = ("request_id", "arrival_ns", "num_prompt_tokens", "num_output_tokens")
"""Fields that every request has of its own."""
SHARING = ("prefix_ids", "prefix_block_size")
"""Those of requests that may begin alike."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests sorted by arrival; those of one instant are served in this order.

    Examples:
        >>> workload = dooly.parse_workload("closed:concurrency=4,requests=8,prompt=64,output=16")
        >>> workload.concurrency, workload.requests[0].num_prompt_tokens
        (4, 64)
    """

    requests: Sequence[Request]
    """At least one, sorted by `arrival_ns`, with distinct `request_id`; a tuple, or made one by one when they are asked for."""
    description: str
    """Where the requests come from, for reports."""
    concurrency: int | None = None
    """In a closed loop, how many users there are: each sends the next request when its last one has ended, so that arrivals
    follow from what the engine does. None where requests arrive at their own times."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how the requests were read, such as failed ones that were left out."""

    def __post_init__(self) -> None:
        if not len(self.requests):
            raise WorkloadError(f"{self.description}: no request; a workload needs at least one")
        arrival_ns, request_ids = column(self.requests, "arrival_ns"), column(self.requests, "request_id")
        if self.concurrency is not None and (self.concurrency < 1 or arrival_ns.any()):
            raise WorkloadError(
                f"{self.description}: a closed loop needs a concurrency of at least 1, got {self.concurrency}, and requests that "
                "arrive at 0"
            )
        early = np.flatnonzero(np.diff(arrival_ns) < 0)
        if early.size:
            raise WorkloadError(
                f"{self.description}: request {request_ids[early[0] + 1]} arrives before the one ahead of it; sort by arrival_ns"
            )
        if (twice := first_repeated(request_ids)) is not None:
            raise WorkloadError(f"{self.description}: request_id {twice} occurs twice; make it unique")
        if any(column(self.requests, "turn")):
            self._check_turns()

    @property
    def waits_for_answers(self) -> bool:
        """Whether requests are sent when others have ended: those of a closed loop, and turns of conversations."""
        return self.concurrency is not None or any(turn and turn.follows is not None for turn in column(self.requests, "turn"))

    def _check_turns(self) -> None:
        """Refuse turns that do not go on from where the one before them ended."""
        seen: dict[int, Request] = {}
        for request in self.requests:
            if request.turn is not None and request.turn.follows is not None:
                self._check_turn(request, request.turn, seen.get(request.turn.follows))
            seen[request.request_id] = request

    def _check_turn(self, request: Request, turn: Turn, before: Request | None) -> None:
        """Refuse a turn that does not go on from the request that it follows."""
        place = f"{self.description}: request {request.request_id}"
        if self.concurrency is not None:
            raise WorkloadError(f"{place}: a closed loop has no conversations; drop concurrency or turns")
        if before is None or before.turn is None or before.turn.conversation != turn.conversation:
            raise WorkloadError(
                f"{place}: follows {turn.follows}, which is not ahead of it in conversation {turn.conversation}; order the turns"
            )
        history = before.num_prompt_tokens + before.num_output_tokens
        shared = (before.prefix_ids, before.prefix_block_size)
        if request.num_prompt_tokens < history or (request.prefix_ids, request.prefix_block_size) != shared:
            raise WorkloadError(
                f"{place}: its prompt of {request.num_prompt_tokens} tokens must begin with the {history} of request "
                f"{turn.follows} and its answer, the same prefix_ids among them"
            )
