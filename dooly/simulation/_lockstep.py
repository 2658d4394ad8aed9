"""Engines that step together, as vLLM's data-parallel ranks do that share the experts of a mixture.

Each rank schedules its own requests, but all launch a step at once, each by its own host, and it has run when the slowest has. A
rank without work runs a dummy step of one token beside the others, which is never the slowest. All stop when none has work; vLLM
(0.32) looks at that after every sixteenth step only, so that ranks may run some dummy steps more, of which an arrival waits for
the rest of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._step_log import StepLog
from dooly.simulation._steps import PricedRun, Progress, ScheduledStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.latency import HostTimes, LatencyBackend
    from dooly.power_cap import PacedDevice
    from dooly.simulation._scheduler import Scheduler

    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class JointStep(ScheduledStep):
    """A step of all ranks."""

    by_rank: tuple[tuple[int, LatencyBackend, ScheduledStep], ...] = ()
    """Ranks that have work, with what prices them, and what they do."""
    hosts: tuple[HostTimes, ...] = ()
    """What the host of each of them takes to launch steps."""

    def draws(self, devices: Sequence[PacedDevice]) -> bool:
        """Tell whether a rank's part draws on what its device's power limit allows."""
        return any(step.draws(devices[rank:]) for rank, _, step in self.by_rank)

    def run_ns(self, latency: LatencyBackend, devices: Sequence[PacedDevice], start_ns: int) -> int:
        """Run each rank's part on its device, and return what the slowest takes."""
        del latency
        return max(step.run_ns(own, devices[rank:], start_ns) for rank, own, step in self.by_rank)

    def step_ns(self, latency: LatencyBackend) -> int:
        """Return the latency of the slowest rank."""
        del latency
        return max(step.step_ns(own) for _, own, step in self.by_rank)

    def price_run(self, latency: LatencyBackend, num_steps: int) -> PricedRun:
        """Return what the slowest rank takes in each repetition; account is kept of all."""
        del latency
        runs = [step.price_run(own, num_steps) for _, own, step in self.by_rank]
        slowest_ns = np.asarray(np.max([run.steps_ns for run in runs], axis=0), np.int64)
        return PricedRun(slowest_ns, tuple(account for run in runs for account in run.accounts))

    def launch_ns(self, host: HostTimes, decode_length: int = 1) -> int:
        """Return what launching the step takes at the rank where it takes longest, each by its own host."""
        del host
        return max(step.launch_ns(own, decode_length) for own, (_, _, step) in zip(self.hosts, self.by_rank, strict=True))


class JointScheduler:
    """The schedulers of all ranks as one."""

    waiting = ()
    """None that an arrival would wait behind: another rank may let it in."""

    def __init__(self, ranks: Sequence[tuple[Scheduler, LatencyBackend, HostTimes]], num_requests: int) -> None:
        """Take the ranks' schedulers, for one workload, what prices their steps, and what their hosts take to launch them."""
        self.ranks = [scheduler for scheduler, _, _ in ranks]
        self.num_coming = [0] * len(ranks)
        """Requests that were sent to each rank and are not let in."""
        self.latencies = [latency for _, latency, _ in ranks]
        """What prices each rank's steps."""
        self.hosts = [host for _, _, host in ranks]
        """What each rank's host takes to launch them."""
        self._num_steps = 0
        """Steps of the ranks since all were idle."""
        self._rank_of = np.full(num_requests, -1, np.int64)

    @property
    def has_unfinished(self) -> bool:
        """Whether a rank has work."""
        return any(rank.has_unfinished for rank in self.ranks)

    @property
    def num_preemptions(self) -> int:
        """How often running requests were evicted, at all ranks."""
        return sum(rank.num_preemptions for rank in self.ranks)

    @property
    def num_waiting(self) -> int:
        """Requests that wait, at all ranks."""
        return sum(rank.num_waiting for rank in self.ranks)

    @property
    def num_running(self) -> int:
        """Requests that run, at all ranks."""
        return sum(rank.num_running for rank in self.ranks)

    @property
    def kv_cache_usage(self) -> float:
        """Share of the fullest rank's blocks that requests hold."""
        return max(rank.kv_cache_usage for rank in self.ranks)

    def assign(self, request: int, rank: int) -> None:
        """Have a request come to a rank."""
        self._rank_of[request] = rank
        self.num_coming[rank] += 1

    def add(self, request: int, arrival_ns: int) -> None:
        """Let in a request at its rank, as `Scheduler.add`."""
        if not self.has_unfinished:
            self._num_steps = 0
        rank = int(self._rank_of[request])
        self.num_coming[rank] -= 1
        self.ranks[rank].add(request, arrival_ns)

    def schedule(self) -> JointStep:
        """Decide the next step of every rank with work."""
        for scheduler in self.ranks:
            scheduler.follow(self._num_steps)
        self._num_steps += 1
        steps = [(rank, scheduler.schedule()) for rank, scheduler in enumerate(self.ranks) if scheduler.has_unfinished]
        busy = tuple((rank, self.latencies[rank], step) for rank, step in steps if step.requests.size)
        first = [request for _, step in steps for request in step.first_scheduled]
        # A rank whose last tokens are under way may end, and let others in, before the rest have gone on.
        most = min(step.max_num_steps for _, step in steps) if len(busy) == len(steps) else 1
        return JointStep(
            np.concatenate([step.requests for _, step in steps]),
            np.concatenate([step.num_new_tokens for _, step in steps]),
            np.concatenate([step.num_computed_tokens for _, step in steps]),
            first,
            most,
            by_rank=busy,
            hosts=tuple(self.hosts[rank] for rank, _, _ in busy),
        )

    def advance(self, step: ScheduledStep, num_steps: int = 1) -> Progress:
        """Take a step's tokens for granted at every rank, as `Scheduler.advance`."""
        assert isinstance(step, JointStep)
        self._num_steps += num_steps - 1
        parts = [self.ranks[rank].advance(own, num_steps) for rank, _, own in step.by_rank]
        return Progress(
            np.concatenate([part.requests for part in parts]),
            np.concatenate([part.num_computed_tokens for part in parts]),
            np.concatenate([part.first_token for part in parts]),
            np.concatenate([part.finished for part in parts]),
            np.concatenate([part.generated for part in parts]),
            num_steps,
        )

    def retire(self, progress: Progress) -> Progress:
        """Let go of what steps have ended at every rank, as `Scheduler.retire`."""
        for rank in np.unique(self._rank_of[progress.requests]).tolist():
            is_own = self._rank_of[progress.requests] == rank
            first_token, finished, generated = (
                requests[self._rank_of[requests] == rank]
                for requests in (progress.first_token, progress.finished, progress.generated)
            )
            requests, num_computed = progress.requests[is_own], progress.num_computed_tokens[is_own]
            self.ranks[rank].retire(Progress(requests, num_computed, first_token, finished, generated, progress.num_steps))
        return progress


class JointLog(StepLog):
    """The logs of all ranks as one."""

    def __init__(self, logs: Sequence[StepLog | None]) -> None:
        """Take a log for each rank, or none."""
        super().__init__()
        self._logs = logs

    def add(self, starts_ns: Sequence[int] | Ints, ends_ns: Sequence[int] | Ints, step: ScheduledStep) -> None:
        """Note a step at every rank that has work in it."""
        assert isinstance(step, JointStep)
        for rank, _, own in step.by_rank:
            if (log := self._logs[rank]) is not None:
                log.add(starts_ns, ends_ns, own)
