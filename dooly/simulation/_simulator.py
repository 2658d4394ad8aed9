"""Serve a workload with one engine: all that happens is what it does next, and what users send when their requests have ended."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError, spell
from dooly.latency import HostTimes, prices_by_sheet
from dooly.simulation._compiled_run import Served, serve_compiled
from dooly.simulation._make_scheduler import make_scheduler
from dooly.simulation._replica import EngineReplica
from dooly.simulation._results import SimulationResult, times_as_columns
from dooly.simulation._senders import Senders
from dooly.simulation._timeline import Timeline, refuse_unfinished
from dooly.simulation._workload import NS_PER_S, Workload

if TYPE_CHECKING:
    from dooly.latency import LatencyBackend
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._step_log import StepLog

_MANY = 250
"""Requests from which on the compiled loop pays: loading it takes as long as it takes Python to serve these."""
_COMPILED = "dooly.simulation._compiled_loop"


def load_compiled_loop() -> None:
    """Load what serves large workloads, so that small ones are served by it too: this pays where a process serves many."""
    import_module(_COMPILED)


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
        WorkloadError: A request is too long for the model or the KV cache, and nothing is simulated; or it can never finish.
        DoolyError: Whatever `latency` raises for a step that it cannot price.

    Examples:
        >>> class Constant(dooly.latency.LatencyBackend):
        ...     def step_ns(self, batch):
        ...         return 10_000_000
        >>> workload = dooly.parse_workload("closed:concurrency=1,requests=2,prompt=64,output=11")
        >>> config = dooly.simulation.SchedulerConfig(max_model_len=2048, num_kv_blocks=4096)
        >>> result = dooly.simulate(workload, Constant(), config)
        >>> result.summary()["tpot_s"]["mean"]
        0.01
    """
    if not isinstance(workload, Workload):
        raise InvalidInputError(f"simulate: workload: {spell(workload)} is none; give what dooly.parse_workload returns")
    started_s = time.perf_counter()
    served = _serve(workload, latency, config, host_beside(latency, host), steps)
    rows = times_as_columns(workload.requests, [times_ns / NS_PER_S for times_ns in served[:4]])
    wall_s = time.perf_counter() - started_s
    device_s = (served.host_wait_ns / NS_PER_S, served.power_limit_ns / NS_PER_S)
    return SimulationResult(rows, served.num_steps, served.num_preemptions, wall_s, served.gaps, *device_s)


def _serve(
    workload: Workload, latency: LatencyBackend, config: SchedulerConfig, host: HostTimes, steps: StepLog | None
) -> Served:
    """Serve a workload by the compiled loop where it takes it, and in Python otherwise: what comes of it is the same."""
    pays = len(workload.requests) >= _MANY or _COMPILED in sys.modules
    if pays and steps is None and prices_by_sheet(latency) and (sheet := latency.price_sheet()) is not None:
        served = serve_compiled(workload, latency, sheet, config, host)
        if served is not None:
            return served
    timeline, senders = Timeline(workload.requests), Senders(workload)
    replica = EngineReplica(make_scheduler(workload.requests, config), latency, config, host, timeline, steps)
    for request, arrival_ns in senders.first():
        replica.send(request, arrival_ns)
    while replica.next_event is not None:
        finished = replica.act()
        for request, arrival_ns in senders.next(finished.tolist(), replica.acted_ns):
            timeline.arrivals_ns[request] = arrival_ns
            replica.send(request, arrival_ns)
    refuse_unfinished(workload.requests, timeline.finish_ns)
    times = (np.array(timeline.arrivals_ns, np.int64), timeline.scheduled_ns, timeline.first_token_ns, timeline.finish_ns)
    counts = replica.num_steps, replica.scheduler.num_preemptions, replica.host_wait_ns, replica.power_limit_ns
    return Served(*times, *counts, timeline.tokens.gaps())


def host_beside(latency: LatencyBackend, host: HostTimes | None) -> HostTimes:
    """Return what the engine's host takes: as given, else what the predictor says, else nothing."""
    return host or latency.host or HostTimes()
