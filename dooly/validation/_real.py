"""Serve a workload with the real engine, in real time, and keep when each request got its tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dooly.simulation import RequestTimes, SimulationResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """One pass of a workload through a running engine: send what has arrived, run a step, note the tokens."""

    def __init__(self, engine: Engine, workload: Workload, progress: Callable[[int], None] = lambda _done: None) -> None:
        self._engine = engine
        self._requests = workload.requests
        self._concurrency = workload.concurrency
        self._arrival: list[float] = [r.arrival_ns / 1e9 for r in workload.requests]
        self._prompts = [engine.prompt(r.num_prompt_tokens) for r in workload.requests]
        self._progress = progress
        self._places: dict[str, int] = {}
        self._first: dict[int, float] = {}
        self._finish: dict[int, float] = {}
        self._steps: list[tuple[float, float, Sequence[Any]]] = []

    def run(self) -> SimulationResult:
        """Serve the workload, and return each request's times in seconds from the start of the run."""
        steps = sent = 0
        preempted = self._engine.num_preemptions
        self._origin = time.perf_counter()
        while sent < len(self._requests) or self._engine.has_unfinished_requests():
            while sent < len(self._requests) and self._may_send(sent):
                name = self._engine.add(self._prompts[sent], self._requests[sent].num_output_tokens)
                self._places[name] = sent
                sent += 1
            if not self._engine.has_unfinished_requests():
                time.sleep(_IDLE_S)
                continue
            self._step()
            steps += 1
            self._progress(len(self._finish))
        return SimulationResult(self._rows(), steps, self._engine.num_preemptions - preempted, self._now())

    def _may_send(self, place: int) -> bool:
        """Tell whether a request is due: its time has come, or in a closed loop, a user has no request under way."""
        if self._concurrency is None:
            return self._arrival[place] <= self._now()
        if place - len(self._finish) >= self._concurrency:
            return False
        self._arrival[place] = self._now()
        return True

    def _step(self) -> None:
        begin = self._now()
        outputs = self._engine.step()
        end = self._now()
        self._steps.append((begin, end, self._engine.scheduler_outputs()))
        for output in outputs:
            place = self._places[output.request_id]
            self._first.setdefault(place, end)
            if output.finished:
                self._finish[place] = end

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
