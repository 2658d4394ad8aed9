"""One engine in virtual time, in integer nanoseconds: it is told of arrivals, and acts when its time has come.

It mirrors a driver that, before each step, lets in all requests that have arrived, then runs one step. At one instant, what has
run is known first, then requests arrive, then the next step is scheduled: an arrival at the very end of a step is in time for it.

A synchronous engine has one step under way. One that schedules ahead has two: it schedules and launches the next while the device
is at one, and learns what a step brought about when that has run.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import replace
from enum import IntEnum
from heapq import heappop, heappush
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.power_cap import PacedDevice
from dooly.simulation._drafted_latency import DraftedLatency
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.latency import HostTimes, LatencyBackend
    from dooly.simulation._lockstep import JointScheduler
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._steps import Progress, ScheduledStep
    from dooly.simulation._timeline import Timeline


_NONE = np.empty(0, np.int64)


class Happening(IntEnum):
    """What happens at an instant, in this order."""

    RETIRE = 0
    """The host learns that a step has run."""
    ARRIVE = 1
    """A request is sent."""
    SCHEDULE = 2
    """The host schedules a step."""


class Event(NamedTuple):
    """When what happens; sorted by both."""

    ns: int
    """When, from the run's start."""
    happening: Happening
    """What."""


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


class EngineReplica:
    """An engine with its clock, the requests that were sent to it, and the steps under way.

    Call `act` while `next_event` is due.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what an engine is made of
        self,
        scheduler: Scheduler | JointScheduler,
        latency: LatencyBackend,
        config: SchedulerConfig,
        host: HostTimes,
        timeline: Timeline,
        log: StepLog | None = None,
    ) -> None:
        """Start idle at 0.

        Args:
            scheduler: Decides its steps.
            latency: Prices the steps.
            config: The engine's settings.
            host: What the engine's host takes to launch steps.
            timeline: Told what happens to requests.
            log: Filled with what each step computes and when, where it is given.
        """
        self.scheduler = scheduler
        self.num_steps = 0
        self.host_wait_ns = 0
        """How long the device has waited for the host to launch a step that it could have run."""
        self._latency = latency if config.speculative is None else DraftedLatency(latency, config.speculative)
        self._decode_length = 1 if config.speculative is None else 1 + config.speculative.num_speculative_tokens
        self._host = host
        prices = (latency,) if isinstance(scheduler, Scheduler) else scheduler.latencies
        self._devices = [PacedDevice(price.power_cap) for price in prices]
        self._timeline = timeline
        self._log = log
        self._depth = 2 if config.async_scheduling else 1
        self._in_order = config.policy == "fcfs"
        self._under_way: deque[_UnderWay] = deque()
        self._sent: list[tuple[int, int]] = []
        """A heap: when each request arrives that is not let in, and its position."""
        self._transfers: list[tuple[int, Callable[[int], None], int]] = []
        """When KV caches have come or gone, what that means to the scheduler, and whose; by time."""
        self.acted_ns = 0
        """When it did something last."""
        self._now_ns = 0
        self._must_wait = False
        """Whether the next step can be scheduled only when the oldest under way has run."""
        self._is_stuck = False
        """Whether nothing can be scheduled until a KV cache has come or gone."""
        self._last_decode_ns = 1

    @property
    def power_limit_ns(self) -> int:
        """What the devices' power limits have added to their steps, all devices together."""
        return sum(device.slowed_ns for device in self._devices)

    @property
    def num_waiting(self) -> int:
        """Requests that the scheduler has let in and not admitted to a step, or has preempted."""
        return self.scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests that steps work on."""
        return self.scheduler.num_running

    @property
    def num_unfinished(self) -> int:
        """Requests that were sent here and have not ended."""
        return len(self._sent) + self.num_waiting + self.num_running

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that requests hold."""
        return self.scheduler.kv_cache_usage

    def send(self, request: int, arrival_ns: int) -> None:
        """Have a request arrive, not before what has been let in; of those that arrive together, the workload's order counts."""
        heappush(self._sent, (arrival_ns, request))

    def finish_load(self, request: int, end_ns: int) -> None:
        """Have a request's KV cache come from another engine at `end_ns`, which has not passed."""
        assert isinstance(self.scheduler, Scheduler)
        insort(self._transfers, (end_ns, self.scheduler.finish_load, request), key=itemgetter(0))

    def let_go(self, request: int, end_ns: int) -> None:
        """Have another engine be done with the KV cache of a request that has ended, at `end_ns`, which has not passed."""
        assert isinstance(self.scheduler, Scheduler)
        insort(self._transfers, (end_ns, self.scheduler.let_go, request), key=itemgetter(0))

    @property
    def next_event(self) -> Event | None:
        """What this engine does next if nothing else arrives; None while it is idle."""
        if self._must_wait:
            return Event(max(self._now_ns, self._under_way[0].end_ns), Happening.RETIRE)
        if self.scheduler.has_unfinished and not self._is_stuck:
            return Event(self._now_ns, Happening.SCHEDULE)
        told_ns = min((queue[0][0] for queue in (self._sent, self._transfers) if queue), default=None)
        return None if told_ns is None else Event(max(self._now_ns, told_ns), Happening.SCHEDULE)

    def act(self, horizon_ns: int | None = None) -> npt.NDArray[np.int64]:
        """Do what `next_event` says, up to where a request may arrive that nobody knows of yet; None if none will.

        Returns:
            Positions of the requests that have finished at that time.
        """
        event = self.next_event
        assert event is not None
        self.acted_ns = self._now_ns = event.ns
        if event.happening is Happening.RETIRE:
            return self._retire()
        while self._sent and self._sent[0][0] <= self._now_ns:
            arrival_ns, request = heappop(self._sent)
            self.scheduler.add(request, arrival_ns)
        while self._transfers and self._transfers[0][0] <= self._now_ns:
            _ns, told, request = self._transfers.pop(0)
            told(request)
        if not self.scheduler.has_unfinished:
            return _NONE
        num_preemptions = self.scheduler.num_preemptions
        step = self.scheduler.schedule()
        self._timeline.scheduled_ns[step.first_scheduled] = self._now_ns
        if step.requests.size:
            self._launch(step, horizon_ns)
        # Where the very last request gave way to those that hold blocks, one of these is served next.
        is_idle = not step.requests.size and not self._under_way
        self._is_stuck = is_idle and self.scheduler.num_preemptions == num_preemptions
        self._must_wait = not is_idle and (not step.requests.size or len(self._under_way) >= self._depth)
        return _NONE

    def _retire(self) -> npt.NDArray[np.int64]:
        """Note what the oldest step under way brought about."""
        progress, known_ns = self._under_way.popleft()
        progress = self.scheduler.retire(progress)
        self._timeline.note(progress, np.append(known_ns[:-1], self._now_ns))
        self._must_wait = len(self._under_way) >= self._depth
        return progress.finished

    def _launch(self, step: ScheduledStep, horizon_ns: int | None) -> None:
        """Put a step under way, or as many repetitions of it as no arrival disturbs."""
        launch_ns = step.launch_ns(self._host, self._decode_length)
        if step.max_num_steps > 1 and step.draws(self._devices):  # what each takes hangs on the one before
            step = replace(step, max_num_steps=1)
        if self._depth > 1:
            self._launch_ahead(step, launch_ns, horizon_ns)
            return
        if step.max_num_steps > 1:
            ends_ns = self._decode_until_arrival(step, launch_ns, horizon_ns)
        else:
            device_ns = step.run_ns(self._latency, self._devices, self._now_ns + self._host.prepare_ns)
            step_ns = max(self._host.prepare_ns + device_ns, launch_ns)
            ends_ns = np.array([self._now_ns + step_ns], dtype=np.int64)
            self.host_wait_ns += step_ns - device_ns
        if self._log is not None:
            self._log.add([self._now_ns, *ends_ns[:-1]], ends_ns, step)
        self.num_steps += len(ends_ns)
        self._under_way.append(_UnderWay(self.scheduler.advance(step, len(ends_ns)), ends_ns))

    def _launch_ahead(self, step: ScheduledStep, launch_ns: int, horizon_ns: int | None) -> None:
        """Launch a step, or repetitions of it, behind what the device is at.

        Each is scheduled when the host has launched the one before, and the one before that is known to have run.
        """
        free_ns = self._under_way[-1].end_ns if self._under_way else self._now_ns
        next_ns = run = None
        if step.max_num_steps > 1:
            next_ns, num_steps = self._steps_to_price(step, free_ns, horizon_ns)
            run = step.price_run(self._latency, num_steps)
            times_ns = run.steps_ns.tolist()
        else:
            times_ns = [step.run_ns(self._latency, self._devices, max(free_ns, self._now_ns + self._host.prepare_ns))]
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
        if run is not None:
            run.account(num_steps)
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

    def _steps_to_price(self, step: ScheduledStep, free_ns: int, horizon_ns: int | None) -> tuple[int | None, int]:
        """Return the arrival that would disturb a run of decodes, None without one, and how many steps are worth pricing.

        Behind a request that cannot be admitted, an arrival changes nothing where all are served in order. No more steps are
        priced than will be needed at the last step's pace; what this leaves out, the next call takes up.
        """
        next_ns = horizon_ns
        if self._sent and not (self.scheduler.waiting and self._in_order):
            next_ns = self._sent[0][0] if next_ns is None else min(next_ns, self._sent[0][0])
        if self._transfers:
            next_ns = self._transfers[0][0] if next_ns is None else min(next_ns, self._transfers[0][0])
        if next_ns is None:
            return None, step.max_num_steps
        return next_ns, min(step.max_num_steps, max(0, next_ns - free_ns) // self._last_decode_ns + self._depth)

    def _decode_until_arrival(self, step: ScheduledStep, launch_ns: int, horizon_ns: int | None) -> npt.NDArray[np.int64]:
        """Return the ends of as many repetitions of a decode step as no arrival disturbs, at least one; shape (num_steps,)."""
        next_ns, num_steps = self._steps_to_price(step, self._now_ns, horizon_ns)
        run = step.price_run(self._latency, num_steps)
        device_ns = run.steps_ns
        ends_ns = self._now_ns + np.cumsum(np.maximum(self._host.prepare_ns + device_ns, launch_ns))
        if next_ns is not None:
            ends_ns = ends_ns[: int(np.searchsorted(ends_ns, next_ns)) + 1]
        run.account(len(ends_ns))
        self.host_wait_ns += int(ends_ns[-1] - self._now_ns - device_ns[: len(ends_ns)].sum())
        self._last_decode_ns = max(1, (int(ends_ns[-1]) - self._now_ns) // len(ends_ns))
        return ends_ns
