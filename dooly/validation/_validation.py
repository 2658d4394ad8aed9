"""Judge a simulation by the real engine on the same workload, beside the engine's own run-to-run noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.catalog import CUDA_GRAPHS, describe_environment
from dooly.engines import ModelSource, ServingConfig, start_engine
from dooly.errors import InvalidInputError
from dooly.latency import slowed_host
from dooly.predict import load_latency_model
from dooly.simulation import (
    MetricError,
    Request,
    SimulationResult,
    Workload,
    compare,
    noise,
    scheduler_config,
    simulate,
)
from dooly.validation._kept import KeptRuns, ServedRun
from dooly.validation._machine import MachineState, MachineWatch, profiled_products_ns
from dooly.validation._real import RealRun
from dooly.validation._steps import StepReport, step_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dbstore import Environment, Store
    from dooly.engines import Engine
    from dooly.predict import LatencyModel

_WARM_UP_REQUESTS = 8
_NOT_RUN = {
    "speculative_config": "the real engine has random weights, whose drafts tell nothing of a model's",
    "kv_policy": "the real engine has none",
}
"""Settings that are simulated, and that no real engine here is run with; and why."""
_SAME = ("device", "attention_backend", "dtype", "kv_cache_dtype", "block_size", "execution_mode")
"""What an engine has to have in common with a device whose measurements ship: kernels of other versions are told as errors."""


@dataclass(frozen=True, slots=True)
class MetricReport:
    """How far the simulation is off in one metric. All are fractions."""

    mape: float
    """Mean over requests and real runs of |simulated - real| / real."""
    mean_error: float
    """Error of the simulated mean against the mean of the real runs' means; negative where the simulation is too fast."""
    noise: float | None
    """MAPE between the real runs; None where there was only one."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A workload, served by the real engine and simulated."""

    real: tuple[SimulationResult, ...]
    """The real engine's runs."""
    simulated: SimulationResult
    """The simulation."""
    ttft: MetricReport
    """Error in time to first token."""
    tpot: MetricReport | None
    """Error in time per output token after the first; None where no request has two output tokens."""
    step: StepReport
    """Error of the latency model, a step at a time."""
    machine: MachineState
    """What the machine did during the real runs; where others kept more than a few percent of a core busy, the real times are not
    the engine's."""
    slowdown: tuple[float, float] | None
    """How much longer than while it was profiled the machine computed and moved memory during the real runs, as fractions; None
    where that was not noted."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data in the form of `dooly validate --json`; `real` is the first run."""
        return {
            "schema": 1,
            "ttft": _report_to_json(self.ttft),
            "tpot": _report_to_json(self.tpot),
            "step": asdict(self.step),
            "real": self.real[0].summary(),
            "real_runs": [run.summary() for run in self.real],
            "simulated": self.simulated.summary(),
            "others_cores": self.machine.others_cores,
            "slowdown": None if self.slowdown is None else dict(zip(("compute", "memory"), self.slowdown, strict=True)),
        }


def validate(  # noqa: PLR0913 - one argument an option of `dooly validate`
    model: ModelSource,
    store: Store,
    workload: Workload,
    serving: ServingConfig | None = None,
    *,
    repeat: int = 2,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Validation:
    """Simulate a workload, run it on the real engine, and compare.

    Args:
        model: A model that the store has a profile of.
        store: The store with its profile.
        workload: The requests. Each run draws its real prompts anew, whatever prefixes the workload shares.
        serving: The engine settings, for both sides; without prefix caching, whatever they say of it.
        repeat: Runs of the real engine; their differences are its noise.
        progress: Called with (requests finished, requests in all) during the real runs.

    Raises:
        MissingOperationError: The store lacks the model or an operation of it.
        EngineError: The engine does not start.
        InvalidInputError: `repeat` is below 1, or the real engine is not run with one of the settings.

    Examples:
        What the store must hold is asked before the engine starts; the real runs take minutes.

        >>> model, store = dooly.find_model("smollm2-135m"), dooly.Store.open("empty", "a")
        >>> dooly.validate(model, store, dooly.parse_workload("poisson:rate=2,requests=4,prompt=64,output=16"))
        Traceback (most recent call last):
        ...
        dooly.errors.MissingOperationError: smollm2-135m: the store holds no profile of this model with --dtype bfloat16; ...
    """
    if repeat < 1:
        raise InvalidInputError(f"--repeat: {repeat} is not at least 1; run the real engine once or more")
    _check_settings(serving or ServingConfig())
    # Each run draws its real prompts anew, whatever prefixes the workload shares: neither cache would find what the other does.
    serving = replace(serving or ServingConfig(), enable_prefix_caching=False)
    latency = load_latency_model(store, model, serving)
    simulated = _simulated(workload, latency, serving)
    eager = latency.environment.execution_mode == "eager"
    engine = start_engine(model, serving, enforce_eager=eager, async_scheduling=latency.schedules_ahead)
    try:
        _check_same_machine(describe_environment(engine, serving), engine.num_kv_blocks, serving, latency)
        runs, machine = serve(engine, workload, repeat, progress)
    finally:
        engine.close()
    return _compared(runs, simulated, latency, machine, store)


def validate_kept(  # noqa: PLR0913 - one argument an option of `dooly validate --real`
    model: ModelSource,
    store: Store | None,
    workload: Workload,
    kept: KeptRuns,
    hardware: str | None = None,
    *,
    host_slowdown: float | None = None,
) -> Validation:
    """Simulate a workload, and compare with runs of the real engine that were kept; needs no engine.

    Args:
        model: A model that the store has a profile of, in the environment of the runs.
        store: The store with its profile; None where `hardware` is named.
        workload: The requests that the runs served.
        kept: The runs.
        hardware: Name of the device that the runs were on, of those that `dooly hardware` lists, in place of a store.
        host_slowdown: How many times as long the runs' host took to launch a step as the one that was measured; None for as long.

    Raises:
        MissingOperationError: The store lacks the model in that environment, or an operation of it.
        InvalidInputError: The runs are of another model, served another workload or another number of KV blocks than the settings
            give, or ran on another device than `hardware`; or the workload has conversations, of whose turns kept runs do not say
            who waited.
    """
    if any(request.turn for request in workload.requests):
        raise InvalidInputError(
            f"--workload: {workload.description} has conversations, whose turns kept runs do not hold; leave turns out, or "
            "validate on the engine, without --real"
        )
    if model.name != kept.model:
        raise InvalidInputError(f"--real: the runs kept are of {kept.model}, not {model.name}; give that as MODEL")
    timed = workload.concurrency is None
    asked = [(r.arrival_ns / 1e9 if timed else 0.0, r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]
    if any(asked != [(arrival_s if timed else 0.0, *lengths) for arrival_s, *lengths in served] for served in kept.requests):
        raise InvalidInputError(f"--real: the runs kept served {kept.workload}; give that as --workload")
    environment = None if hardware else kept.environment
    serving = replace(kept.serving, kv_cache_memory_bytes=kept.serving.kv_cache_bytes)  # what the engine was given
    latency = load_latency_model(store, model, serving, environment, hardware=hardware)
    latency.host = slowed_host(latency.host, host_slowdown)
    _check_same_machine(kept.environment, kept.num_kv_blocks, serving, latency)
    simulated = _simulated(workload, latency, serving)
    return _compared(kept.runs, simulated, latency, kept.machine, store)


def serve(
    engine: Engine, workload: Workload, repeat: int, progress: Callable[[int, int], None] = lambda _done, _total: None
) -> tuple[tuple[ServedRun, ...], MachineState]:
    """Serve a workload several times after a warm-up.

    Returns:
        The runs, and what the machine did meanwhile.
    """
    RealRun(engine, _warm_up(workload)).run()
    watch = MachineWatch(engine)
    number = len(workload.requests)
    runs = []
    for before in range(0, repeat * number, number):
        run = RealRun(engine, workload, partial(_add_up, progress, before, repeat * number))
        runs.append(ServedRun(run.run(), run.steps()))
        watch.between_runs()
    return tuple(runs), watch.state()


def _check_settings(serving: ServingConfig) -> None:
    """Refuse what is simulated, and not done by the engine that runs here."""
    for name, reason in _NOT_RUN.items():
        if getattr(serving, name) != getattr(ServingConfig(), name):
            raise InvalidInputError(f"--{name.replace('_', '-')}: {reason}; leave it out, or simulate alone")


def _simulated(workload: Workload, latency: LatencyModel, serving: ServingConfig) -> SimulationResult:
    return simulate(workload, latency, scheduler_config(serving, latency))


def _compared(
    runs: Sequence[ServedRun], simulated: SimulationResult, latency: LatencyModel, machine: MachineState, store: Store | None
) -> Validation:
    real = [run.result for run in runs]
    errors = [compare(run, simulated) for run in real]
    noises = noise(real) if len(real) > 1 else None
    tpots = [e.tpot for e in errors if e.tpot is not None]
    return Validation(
        tuple(real),
        simulated,
        _report([e.ttft for e in errors], noises.ttft if noises else None),
        _report(tpots, noises.tpot if noises else None) if tpots else None,
        step_report(runs, latency, latency.host if latency.schedules_ahead else None),
        machine,
        machine.slowdown(None if store is None else profiled_products_ns(store, latency)),
    )


def _add_up(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _check_same_machine(here: Environment, num_kv_blocks: int, serving: ServingConfig, latency: LatencyModel) -> None:
    """Raise unless the engine runs in the environment that the latencies were measured in, with the KV cache simulated."""
    ours, theirs = here.to_json(), latency.environment.to_json()
    if latency.hardware is not None:
        ours, theirs = ({name: found[name] for name in _SAME} for found in (ours, theirs))
    elif latency.environment.execution_mode == CUDA_GRAPHS:  # profiles ask for a model runner of their own
        ours, theirs = ({**found, "model_runner": None} for found in (ours, theirs))
    if differing := [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]:
        raise InvalidInputError(
            f"{latency.traced.model}: measured in another environment (differs in {', '.join(differing)}); "
            "profile it on this machine"
        )
    if num_kv_blocks != latency.num_kv_blocks(serving):
        raise InvalidInputError(
            f"--kv-cache-memory-bytes: the engine makes {num_kv_blocks} KV blocks of it, the simulation "
            f"{latency.num_kv_blocks(serving)}; report the model as a bug"
        )


def _warm_up(workload: Workload) -> Workload:
    """Return the first requests of a workload, all sent at once, with at most a few output tokens."""
    requests = tuple(
        Request(r.request_id, 0, r.num_prompt_tokens, min(r.num_output_tokens, 8)) for r in workload.requests[:_WARM_UP_REQUESTS]
    )
    return Workload(requests, "warm-up")


def _report(errors: list[MetricError], noise_: float | None) -> MetricReport:
    """Return the mean of the errors against each real run."""
    # 1 + mean_error is simulated mean / real mean; the real runs' means are averaged, not their ratios.
    real_means = [1 / (1 + e.mean_error) for e in errors]
    mean_error = len(real_means) / sum(real_means) - 1
    return MetricReport(sum(e.mape for e in errors) / len(errors), mean_error, noise_)


def _report_to_json(report: MetricReport | None) -> dict[str, float | None]:
    if report is None:
        return {"mape": None, "mean_error": None, "noise": None}
    return {"mape": report.mape, "mean_error": report.mean_error, "noise": report.noise}
