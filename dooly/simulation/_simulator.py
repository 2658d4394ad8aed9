"""The event loop: an engine in virtual time, in integer nanoseconds.

It mirrors a driver that, before each step, sends all requests that have arrived, then runs one step. Two things happen in time:
arrivals, and ends of steps that are under way. An arrival at the very end of a step is in time for what is scheduled then.

A synchronous engine has one step under way. One that schedules ahead has two: it schedules and launches the next while the device
is at one, and learns what a step brought about when that has run.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.errors import InvalidInputError, spell
from dooly.latency import HostTimes
from dooly.simulation._results import RequestTimes, SimulationResult
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._token_gaps import TokenClock
from dooly.simulation._workload import NS_PER_S, Workload

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.latency import LatencyBackend
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._steps import Progress, ScheduledStep


def simulate(
    workload: Workload,
    latency: LatencyBackend,
    config: SchedulerConfig,
    host: HostTimes | None = None,
    *,
    steps: StepLog | None = None,
) -> SimulationResult:
    """Serve a workload in virtual time.

    Args:
        workload: The requests.
        latency: Prices the steps.
        config: The engine's settings.
        host: What the engine's host takes to launch steps; by default what `latency.host` says, and where that says nothing, the
            device never waits for it.
        steps: Filled with what each step computes and when, where it is given.

    Returns:
        Every request's times, in the workload's order.

    Raises:
        InvalidInputError: `workload` is none.
        WorkloadError: A request is too long for the model or the KV cache; nothing is simulated then.
        DoolyError: Whatever `latency` raises for a step that it cannot price.
    """
    if not isinstance(workload, Workload):
        raise InvalidInputError(f"simulate: workload: {spell(workload)} is none; give what dooly.parse_workload returns")
    started_s = time.perf_counter()
    known: HostTimes | None = getattr(latency, "host", None) if host is None else host
    run = _Run(workload, latency, config, known or HostTimes(), steps)
    run.serve_all()
    rows = tuple(
        RequestTimes(
            request.request_id,
            arrival_ns / NS_PER_S,
            request.num_prompt_tokens,
            request.num_output_tokens,
            scheduled_ns / NS_PER_S,
            first_token_ns / NS_PER_S,
            finish_ns / NS_PER_S,
        )
        for request, arrival_ns, scheduled_ns, first_token_ns, finish_ns in zip(
            workload.requests,
            run.arrivals_ns,
            run.scheduled_ns.tolist(),
            run.first_token_ns.tolist(),
            run.finish_ns.tolist(),
            strict=True,
        )
    )
    wall_s = time.perf_counter() - started_s
    host_wait_s = run.host_wait_ns / NS_PER_S
    return SimulationResult(rows, run.num_steps, run.scheduler.num_preemptions, wall_s, run.tokens.gaps(), host_wait_s)


class _UnderWay(NamedTuple):
    """Steps that were launched and are not known to have run."""

    progress: Progress
    """What they will have brought about."""
    known_ns: npt.NDArray[np.int64]
    """When the host knows at the earliest that each of them has run, shape (num_steps,)."""

    @property
    def end_ns(self) -> int:
        """When the last of them has run, and the device is free."""
        return int(self.known_ns[-1])


class _Run:
    """The clock, the arrivals still to come, and the times noted so far."""

    def __init__(
        self, workload: Workload, latency: LatencyBackend, config: SchedulerConfig, host: HostTimes, log: StepLog | None
    ) -> None:
        self.scheduler = Scheduler(workload.requests, config)
        self.num_steps = 0
        self.host_wait_ns = 0
        """How long the device has waited for the host to launch a step that it could have run."""
        num_requests = len(workload.requests)
        self.scheduled_ns = np.zeros(num_requests, np.int64)
        self.first_token_ns = np.zeros(num_requests, np.int64)
        self.finish_ns = np.zeros(num_requests, np.int64)
        self._latency = latency
        self._host = host
        self._log = log
        self._depth = 2 if config.async_scheduling else 1
        self._in_order = config.policy == "fcfs"
        self._under_way: deque[_UnderWay] = deque()
        self.arrivals_ns = [request.arrival_ns for request in workload.requests]
        self.tokens = TokenClock(num_requests)
        self._closed = workload.concurrency is not None
        self._num_arrived = 0
        self._num_sent = num_requests if workload.concurrency is None else min(workload.concurrency, num_requests)
        """Requests whose arrival is known: in a closed loop, those of users whose request before has ended."""
        self._now_ns = 0
        self._last_decode_ns = 1

    def serve_all(self) -> None:
        """Run until every request has finished."""
        while True:
            self._admit_arrivals()
            if not self.scheduler.has_unfinished:
                if self._num_arrived == self._num_sent:
                    return
                self._now_ns = self.arrivals_ns[self._num_arrived]
                continue
            step = self.scheduler.schedule()
            self.scheduled_ns[step.first_scheduled] = self._now_ns
            if step.requests.size:
                self._launch(step)
            else:
                self._wait()
            while len(self._under_way) >= self._depth:
                self._wait()

    def _launch(self, step: ScheduledStep) -> None:
        """Put a step under way, or as many repetitions of it as no arrival disturbs."""
        num_tokens = int(step.num_new_tokens.sum())
        launch_ns = self._host.launch_ns(num_tokens, only_decodes=num_tokens == len(step.requests))
        if self._depth > 1:
            self._launch_ahead(step, launch_ns)
            return
        if step.max_num_steps > 1:
            ends_ns = self._decode_until_arrival(step, launch_ns)
        else:
            device_ns = self._latency.step_ns(step.to_batch())
            step_ns = max(self._host.prepare_ns + device_ns, launch_ns)
            ends_ns = np.array([self._now_ns + step_ns], dtype=np.int64)
            self.host_wait_ns += step_ns - device_ns
        if self._log is not None:
            self._log.add([self._now_ns, *ends_ns[:-1]], ends_ns, step)
        self.num_steps += len(ends_ns)
        self._under_way.append(_UnderWay(self.scheduler.advance(step, len(ends_ns)), ends_ns))

    def _launch_ahead(self, step: ScheduledStep, launch_ns: int) -> None:
        """Launch a step, or repetitions of it, behind what the device is at.

        Each is scheduled when the host has launched the one before, and the one before that is known to have run.
        """
        free_ns = self._under_way[-1].end_ns if self._under_way else self._now_ns
        next_ns = None
        if step.max_num_steps > 1:
            next_ns, num_steps = self._steps_to_price(step, free_ns)
            times_ns = self._latency.decode_run_ns(step.num_computed_tokens, num_steps).tolist()
        else:
            times_ns = [self._latency.step_ns(step.to_batch())]
        scheduled_ns = [self._now_ns]
        ends_ns: list[int] = []
        for time_ns in times_ns:
            if ends_ns and next_ns is not None and scheduled_ns[-1] >= next_ns:
                break
            ready_ns = max(free_ns, scheduled_ns[-1])
            free_ns, after_ns = self._host.launched_ns(scheduled_ns[-1], free_ns, launch_ns, time_ns)
            self.host_wait_ns += free_ns - ready_ns - time_ns
            ends_ns.append(free_ns)
            scheduled_ns.append(after_ns)
        num_steps = len(ends_ns)
        if step.max_num_steps > 1:
            self._last_decode_ns = max(1, (ends_ns[-1] - self._now_ns) // num_steps)
        if self._log is not None:
            self._log.add(np.subtract(ends_ns, times_ns[:num_steps]), ends_ns, step)
        self.num_steps += num_steps
        progress = self.scheduler.advance(step, num_steps)
        # All but the last are known to have run when the one behind the next of each is scheduled.
        known_ns = (np.array(scheduled_ns[2 : num_steps + 1], dtype=np.int64), np.array(ends_ns[-1:], dtype=np.int64))
        parts = progress.split()
        self._under_way.extend(map(_UnderWay, parts, known_ns[-len(parts) :]))
        self._now_ns += launch_ns

    def _wait(self) -> None:
        """Wait for the oldest step under way, and note what it brought about."""
        progress, known_ns = done = self._under_way.popleft()
        self._now_ns = max(self._now_ns, done.end_ns)
        self.scheduler.retire(progress)
        self.first_token_ns[progress.first_token] = self._now_ns
        self.finish_ns[progress.finished] = self._now_ns
        if progress.generated.size:
            self.tokens.tick(progress.generated, np.append(known_ns[:-1], self._now_ns))
        if self._closed:
            self._send_next(len(progress.finished))

    def _send_next(self, num_requests: int) -> None:
        """Let users whose requests have just ended send the next ones."""
        last = min(self._num_sent + num_requests, len(self.arrivals_ns))
        self.arrivals_ns[self._num_sent : last] = [self._now_ns] * (last - self._num_sent)
        self._num_sent = last

    def _admit_arrivals(self) -> None:
        arrivals_ns = self.arrivals_ns
        while self._num_arrived < self._num_sent and arrivals_ns[self._num_arrived] <= self._now_ns:
            self.scheduler.add(self._num_arrived)
            self._num_arrived += 1

    def _steps_to_price(self, step: ScheduledStep, free_ns: int) -> tuple[int | None, int]:
        """Return the arrival that would disturb a run of decodes, None without one, and how many steps are worth pricing.

        Behind a request that cannot be admitted, an arrival changes nothing where all are served in order. No more steps are
        priced than will be needed at the last step's pace; what this leaves out, the next call takes up.
        """
        if (self.scheduler.waiting and self._in_order) or self._num_arrived == self._num_sent:
            return None, step.max_num_steps
        next_ns = self.arrivals_ns[self._num_arrived]
        return next_ns, min(step.max_num_steps, max(0, next_ns - free_ns) // self._last_decode_ns + self._depth)

    def _decode_until_arrival(self, step: ScheduledStep, launch_ns: int) -> npt.NDArray[np.int64]:
        """Return the ends of as many repetitions of a decode step as no arrival disturbs, at least one; shape (num_steps,)."""
        next_ns, num_steps = self._steps_to_price(step, self._now_ns)
        device_ns = self._latency.decode_run_ns(step.num_computed_tokens, num_steps)
        ends_ns = self._now_ns + np.cumsum(np.maximum(self._host.prepare_ns + device_ns, launch_ns))
        if next_ns is not None:
            ends_ns = ends_ns[: int(np.searchsorted(ends_ns, next_ns)) + 1]
        self.host_wait_ns += int(ends_ns[-1] - self._now_ns - device_ns[: len(ends_ns)].sum())
        self._last_decode_ns = max(1, (int(ends_ns[-1]) - self._now_ns) // len(ends_ns))
        return ends_ns
