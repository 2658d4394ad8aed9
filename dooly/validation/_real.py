"""Serve a workload with the real engine, in real time, and keep when each request got its tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from dooly.simulation import RequestTimes, SimulationResult
from dooly.simulation._senders import Senders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dooly.engines import Engine
    from dooly.simulation import Workload

_IDLE_S = 0.0002


@dataclass(frozen=True, slots=True)
class StepRun:
    """One step of the real engine."""

    start_s: float
    """When it began, in seconds from the run's start."""
    duration_s: float
    """How long it took, in seconds."""
    work: tuple[tuple[int, int, int], ...]
    """Place in the workload, new tokens and computed tokens of each request that was scheduled."""


class RealRun:
    """One pass of a workload through a running engine: send what has arrived, run a step, note the tokens.

    The same senders as the simulator's decide what is sent when: at times, or when other requests have ended.
    """

    def __init__(self, engine: Engine, workload: Workload, progress: Callable[[int], None] = lambda _done: None) -> None:
        self._engine = engine
        self._requests = workload.requests
        self._is_closed_loop = workload.concurrency is not None
        self._senders = Senders(workload)
        self._arrival = [0.0] * len(workload.requests)
        self._due: list[tuple[float, int]] = []
        """A heap: when each request arrives that was not sent, in seconds, and its place."""
        self._prompts = [engine.prompt(r.num_prompt_tokens) for r in workload.requests]
        self._progress = progress
        self._places: dict[str, int] = {}
        self._first: dict[int, float] = {}
        self._finish: dict[int, float] = {}
        self._steps: list[tuple[float, float, Sequence[Any]]] = []

    def run(self) -> SimulationResult:
        """Serve the workload, and return each request's times in seconds from the start of the run."""
        steps = 0
        preempted = self._engine.num_preemptions
        self._expect(self._senders.first())
        self._origin = time.perf_counter()
        while self._due or self._engine.has_unfinished_requests():
            self._send_due()
            if not self._engine.has_unfinished_requests():
                time.sleep(_IDLE_S)
                continue
            self._step()
            steps += 1
            self._progress(len(self._finish))
        return SimulationResult(self._rows(), steps, self._engine.num_preemptions - preempted, self._now())

    def _expect(self, requests: Iterable[tuple[int, int]]) -> None:
        """Note requests that will arrive, by their places, and when in nanoseconds."""
        for place, arrival_ns in requests:
            heappush(self._due, (arrival_ns / 1e9, place))

    def _send_due(self) -> None:
        """Send what has arrived. In a closed loop that is when it is sent: a user has no request under way."""
        while self._due and self._due[0][0] <= self._now():
            due, place = heappop(self._due)
            self._arrival[place] = self._now() if self._is_closed_loop else due
            request = self._requests[place]
            name = self._engine.add(self._prompts[place], request.num_output_tokens, priority=request.priority)
            self._places[name] = place

    def _step(self) -> None:
        begin = self._now()
        outputs = self._engine.step()
        end = self._now()
        self._steps.append((begin, end, self._engine.scheduler_outputs()))
        finished = []
        for output in outputs:
            place = self._places[output.request_id]
            self._first.setdefault(place, end)
            if output.finished:
                self._finish[place] = end
                finished.append(place)
        self._expect(self._senders.next(finished, round(end * 1e9)))

    def steps(self) -> tuple[StepRun, ...]:
        """Return when each step ran and what it worked on, requests by their place in the workload."""
        found = []
        for begin, end, outputs in self._steps:
            work = [(self._places[name], *tokens) for output in outputs for name, tokens in self._engine.work(output).items()]
            found.append(StepRun(begin, end - begin, tuple(work)))
        return tuple(found)

    def _now(self) -> float:
        return time.perf_counter() - self._origin

    def _rows(self) -> tuple[RequestTimes, ...]:
        scheduled: dict[int, float] = {}
        for step in self.steps():
            for place, _, _ in step.work:
                scheduled.setdefault(place, step.start_s)
        return tuple(
            RequestTimes(
                request.request_id,
                self._arrival[place],
                request.num_prompt_tokens,
                request.num_output_tokens,
                scheduled[place],
                self._first[place],
                self._finish[place],
            )
            for place, request in enumerate(self._requests)
        )
