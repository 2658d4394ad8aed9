"""The event loop: a synchronous engine in virtual time, in integer nanoseconds.

It mirrors a driver that, before each step, sends all requests that have arrived, then runs one step. Two things happen in time:
arrivals, and the end of the one step that is under way. An arrival at the very end of a step is in time for the next.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._results import RequestTimes, SimulationResult
from dooly.simulation._scheduler import ScheduledStep, Scheduler
from dooly.simulation._token_gaps import TokenClock
from dooly.simulation._workload import NS_PER_S

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.latency import LatencyBackend
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Workload


def simulate(workload: Workload, latency: LatencyBackend, config: SchedulerConfig) -> SimulationResult:
    """Serve a workload in virtual time.

    Args:
        workload: The requests.
        latency: Prices the steps.
        config: The engine's settings.

    Returns:
        Every request's times, in the workload's order.

    Raises:
        WorkloadError: A request is too long for the model or the KV cache; nothing is simulated then.
        DoolyError: Whatever `latency` raises for a step that it cannot price.
    """
    started_s = time.perf_counter()
    run = _Run(workload, latency, config)
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
    return SimulationResult(rows, run.num_steps, run.scheduler.num_preemptions, wall_s, run.tokens.gaps())


class _Run:
    """The clock, the arrivals still to come, and the times noted so far."""

    def __init__(self, workload: Workload, latency: LatencyBackend, config: SchedulerConfig) -> None:
        self.scheduler = Scheduler(workload.requests, config)
        self.num_steps = 0
        num_requests = len(workload.requests)
        self.scheduled_ns = np.zeros(num_requests, np.int64)
        self.first_token_ns = np.zeros(num_requests, np.int64)
        self.finish_ns = np.zeros(num_requests, np.int64)
        self._latency = latency
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
            if step.max_num_steps > 1:
                ends_ns = self._decode_until_arrival(step)
            else:
                ends_ns = np.array([self._now_ns + self._latency.step_ns(step.to_batch())], dtype=np.int64)
            num_steps, self._now_ns = len(ends_ns), int(ends_ns[-1])
            self.num_steps += num_steps
            progress = self.scheduler.complete(step, num_steps)
            self.first_token_ns[progress.first_token] = self._now_ns
            self.finish_ns[progress.finished] = self._now_ns
            if progress.generated.size:
                self.tokens.tick(progress.generated, ends_ns)
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

    def _decode_until_arrival(self, step: ScheduledStep) -> npt.NDArray[np.int64]:
        """Return the ends of as many repetitions of a decode step as no arrival disturbs, at least one; shape (num_steps,)."""
        num_steps = step.max_num_steps
        # Behind a request that cannot be admitted, an arrival changes nothing.
        next_ns = None if self.scheduler.waiting or self._num_arrived == self._num_sent else self.arrivals_ns[self._num_arrived]
        if next_ns is not None:
            # Price no more steps than will be needed, at the last step's pace; what this leaves out, the next call takes up.
            num_steps = min(num_steps, (next_ns - self._now_ns) // self._last_decode_ns + 1)
        ends_ns = self._now_ns + np.cumsum(self._latency.decode_run_ns(step.num_computed_tokens, num_steps))
        if next_ns is not None:
            ends_ns = ends_ns[: int(np.searchsorted(ends_ns, next_ns)) + 1]
        self._last_decode_ns = max(1, (int(ends_ns[-1]) - self._now_ns) // len(ends_ns))
        return ends_ns
