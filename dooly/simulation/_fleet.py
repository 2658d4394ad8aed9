"""Serve a workload with replicas behind a router: alike or not, each an engine of its own (data parallelism)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError, spell
from dooly.simulation._columns import column, taken
from dooly.simulation._fleet_result import FleetResult, ReplicaResult, joined
from dooly.simulation._lockstep import JointLog, JointScheduler
from dooly.simulation._make_scheduler import make_scheduler
from dooly.simulation._pool import Pool, run
from dooly.simulation._rank import Rank
from dooly.simulation._replica import EngineReplica
from dooly.simulation._results import TIMES, SimulationResult, times_as_columns
from dooly.simulation._router import RoundRobin
from dooly.simulation._senders import Senders
from dooly.simulation._simulator import host_beside, simulate
from dooly.simulation._timeline import Timeline
from dooly.simulation._workload import NS_PER_S, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dooly.latency import HostTimes, LatencyBackend
    from dooly.simulation._columns import Columns
    from dooly.simulation._remote_kv import RemoteKV
    from dooly.simulation._results import RequestTimes
    from dooly.simulation._router import Router
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._workload import Request

    MakeRouter = Callable[[Sequence[Request], int], Router]
    """What makes a router for a workload and so many replicas, such as its class."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine of a fleet."""

    latency: LatencyBackend
    """Prices its steps; replicas alike may share it."""
    config: SchedulerConfig
    """Its settings."""
    host: HostTimes | None = None
    """What its host takes to launch steps; None for what `latency` says."""

    def engine(
        self, requests: Sequence[Request], timeline: Timeline, log: StepLog | None = None, remote: RemoteKV | None = None
    ) -> EngineReplica:
        """Return the engine, idle, for a workload of which any request may be sent there."""
        scheduler = make_scheduler(requests, self.config, remote)
        return EngineReplica(scheduler, self.latency, self.config, host_beside(self.latency, self.host), timeline, log)


def simulate_fleet(
    workload: Workload,
    replicas: Sequence[Replica],
    router: MakeRouter = RoundRobin,
    *,
    in_step: bool = False,
    steps: Sequence[StepLog] | None = None,
) -> FleetResult:
    """Serve a workload in virtual time with several replicas.

    Args:
        workload: The requests.
        replicas: The engines, at least one; they may differ in hardware and settings.
        router: Makes what chooses the replica of each request: a `Router` class, or a function of the requests and the number of
            replicas.
        in_step: Whether all step together, and a step takes what the slowest does, device and host, as vLLM's data-parallel ranks
            that share the experts of a mixture. `latency` prices a rank with all that it computes of them.
        steps: A log for each replica, filled with its steps, where they are given.

    Raises:
        InvalidInputError: `workload` is none, there is no replica, or `steps` are not as many; or replicas in step differ in
            `async_scheduling`, or have drafts or policies.
        WorkloadError: A request is too long for a replica that it may be sent to; nothing is simulated then.
        DoolyError: Whatever a replica's `latency` raises for a step that it cannot price.
    """
    check_fleet("simulate_fleet", workload, replicas)
    started_s = time.perf_counter()
    logs = one_each("simulate_fleet", steps, len(replicas))
    if in_step:
        return _in_step(workload, replicas, router, logs)
    if router is RoundRobin and (len(replicas) == 1 or not workload.waits_for_answers):
        chosen = [place % len(replicas) for place in range(len(workload.requests))]
        found = [_alone(workload, chosen, place, replica, logs[place]) for place, replica in enumerate(replicas)]
    else:
        chosen, found = _routed(workload, replicas, router, logs)
    rows = _in_order(workload.requests, chosen, found)
    whole = joined(rows, [result for result in found if result is not None], time.perf_counter() - started_s)
    return FleetResult(whole, tuple(ReplicaResult("serve", result) for result in found), {"replica": tuple(chosen)})


def _in_order(
    requests: Sequence[Request], chosen: Sequence[int], found: Sequence[SimulationResult | None]
) -> Columns[RequestTimes]:
    """Return the rows of all replicas in the workload's order."""
    served_by = np.asarray(chosen, np.int64)
    times_s = np.empty((4, len(requests)))
    for place, result in enumerate(found):
        if result is not None:
            times_s[:, served_by == place] = [column(result.rows, name) for name in TIMES]
    return times_as_columns(requests, list(times_s))


def check_fleet(caller: str, workload: Workload, replicas: Sequence[Replica]) -> None:
    """Check what every fleet needs.

    Raises:
        InvalidInputError: There is no workload or no replica.
    """
    if not isinstance(workload, Workload):
        raise InvalidInputError(f"{caller}: workload: {spell(workload)} is none; give what dooly.parse_workload returns")
    if not replicas:
        raise InvalidInputError(f"{caller}: there is no replica; give at least one")


def one_each(caller: str, steps: Sequence[StepLog] | None, num_replicas: int) -> Sequence[StepLog | None]:
    """Return a log for each replica, None where they are not given.

    Raises:
        InvalidInputError: They are not as many.
    """
    if steps is not None and len(steps) != num_replicas:
        raise InvalidInputError(f"{caller}: steps: got {len(steps)} logs for {num_replicas} replicas; give one for each")
    return [None] * num_replicas if steps is None else steps


def _alone(
    workload: Workload, chosen: Sequence[int], place: int, replica: Replica, log: StepLog | None
) -> SimulationResult | None:
    """Return what a replica comes to whose requests and arrivals hang on no other."""
    requests = taken(workload.requests, [position for position, at in enumerate(chosen) if at == place])
    if not len(requests):
        return None
    return simulate(replace(workload, requests=requests), replica.latency, replica.config, replica.host, steps=log)


def _routed(
    workload: Workload, replicas: Sequence[Replica], router: MakeRouter, logs: Sequence[StepLog | None]
) -> tuple[list[int], list[SimulationResult | None]]:
    """Return the replica of each request, and what each replica comes to, where a router looks at what they do."""
    timelines = [Timeline(workload.requests) for _ in replicas]
    beside = zip(replicas, timelines, logs, strict=True)
    engines = [replica.engine(workload.requests, timeline, log) for replica, timeline, log in beside]
    chosen = _route(workload, engines, router, timelines)
    return chosen, [
        replica_result(workload.requests, chosen, place, engine, timeline)
        for place, (engine, timeline) in enumerate(zip(engines, timelines, strict=True))
    ]


def _in_step(workload: Workload, replicas: Sequence[Replica], router: MakeRouter, logs: Sequence[StepLog | None]) -> FleetResult:
    """Return what replicas come to that step together."""
    first, configs = replicas[0], [one.config for one in replicas]
    if any(each.async_scheduling != configs[0].async_scheduling or each.speculative or each.kv_policy for each in configs):
        raise InvalidInputError(
            "simulate_fleet: in_step: replicas differ in async_scheduling, have drafts or policies; give all the same, and none"
        )
    started_s = time.perf_counter()
    requests, timeline = workload.requests, Timeline(workload.requests)
    hosts = [host_beside(one.latency, one.host) for one in replicas]
    ranks = [(make_scheduler(requests, one.config), one.latency, host) for one, host in zip(replicas, hosts, strict=True)]
    joint = JointScheduler(ranks, len(requests))
    # What launching takes, each step says of its ranks; on the device all begin when the slowest host has prepared it.
    slowest = max(hosts, key=lambda host: host.prepare_ns)
    engine = EngineReplica(joint, first.latency, first.config, slowest, timeline, JointLog(logs))
    chosen = _route(workload, [Rank(engine, joint, place) for place in range(len(replicas))], router, [timeline])
    found = [
        SimulationResult(rows, engine.num_steps, rank.num_preemptions, 0.0)
        if (rows := timeline.rows(requests, [position for position, at in enumerate(chosen) if at == place]))
        else None
        for place, rank in enumerate(joint.ranks)
    ]
    counts = (engine.num_steps, joint.num_preemptions, time.perf_counter() - started_s)
    rows = timeline.rows(requests, range(len(requests)))
    whole = SimulationResult(rows, *counts, timeline.tokens.gaps(), *_device_s(engine))
    return FleetResult(whole, tuple(ReplicaResult("serve", result) for result in found), {"replica": tuple(chosen)})


def _route(
    workload: Workload,
    engines: Sequence[EngineReplica | Rank],
    router: MakeRouter,
    timelines: Sequence[Timeline],
) -> list[int]:
    """Serve all requests by engines behind a router; return which served each."""
    senders, pool = Senders(workload), Pool(engines, router(workload.requests, len(engines)))

    def send(request: int, arrival_ns: int) -> None:
        for timeline in timelines:
            timeline.arrivals_ns[request] = arrival_ns
        pool.send(request, arrival_ns)

    def after(pool: Pool, place: int, finished: npt.NDArray[np.int64]) -> None:
        for request, arrival_ns in senders.next(finished.tolist(), pool.replicas[place].acted_ns):
            send(request, arrival_ns)

    for request, arrival_ns in senders.first():
        send(request, arrival_ns)
    run([pool], after, coupled=workload.waits_for_answers)
    chosen: list[int] = pool.chosen.tolist()
    return chosen


def replica_result(
    requests: Sequence[Request], chosen: Sequence[int], place: int, engine: EngineReplica, timeline: Timeline
) -> SimulationResult | None:
    """Return what an engine came to that served the requests whose replica it is; None where there are none."""
    rows = timeline.rows(requests, [position for position, at in enumerate(chosen) if at == place])
    if not rows:
        return None
    counts = (engine.num_steps, engine.scheduler.num_preemptions, 0.0)
    return SimulationResult(rows, *counts, timeline.tokens.gaps(), *_device_s(engine))


def _device_s(engine: EngineReplica) -> tuple[float, float]:
    """Return how long the device has waited for its host, and what its power limit has added to steps, in seconds."""
    return engine.host_wait_ns / NS_PER_S, engine.power_limit_ns / NS_PER_S
