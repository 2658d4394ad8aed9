"""`dooly validate`: the real engine and the simulation side by side, on one workload."""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._options import (
    SIMULATE_ONLY,
    HardwareName,
    HostSlowdown,
    JsonFile,
    Model,
    OptionalDatabase,
    RealFile,
    WorkloadText,
    engine_flags,
)
from dooly.cli._output import is_stdout, new_table, progress_bar, show, write_json
from dooly.cli._stores import check_source, open_to_answer
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dooly.validation import MetricReport, Validation

_LOUD = 0.3
"""Difference between the real runs' times to first token, as a fraction, that the engine itself hardly makes."""

_WITH_KEPT_RUNS = ("model", "db", "hardware", "workload", "real", "host_slowdown", "json_file")
"""What can be said where the real engine is not run."""


@engine_flags(without=SIMULATE_ONLY)
def validate(  # noqa: PLR0913 - one argument an option
    context: typer.Context,
    model: Model,
    *,
    db: OptionalDatabase = None,
    hardware: HardwareName = None,
    workload: WorkloadText,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of the real engine, whose spread is the noise.")] = 2,
    real: RealFile = None,
    host_slowdown: HostSlowdown = None,
    json_file: JsonFile = None,
    serving: ServingConfig,
) -> None:
    """Run the real engine beside the simulation, and print the error next to the engine's own noise."""
    from dooly.simulation import parse_workload
    from dooly.validation import read_runs, validate_kept
    from dooly.validation import validate as run_both

    check_source(db, hardware)
    if hardware is not None and real is None:
        raise typer.BadParameter("--hardware: no such device is here to run the engine on; give kept runs with --real")
    if real is not None:
        _refuse_settings(context)
    elif host_slowdown is not None:
        raise typer.BadParameter(
            "--host-slowdown: the host at hand is in its records; leave it out, or give kept runs with --real"
        )
    source = find_model(model)
    requests = parse_workload(workload)
    store = None if db is None else open_to_answer(db)
    if real is not None:
        validation = validate_kept(source, store, requests, read_runs(real), hardware, host_slowdown=host_slowdown)
    else:
        assert store is not None
        with progress_bar(f"{source.name}: simulating, starting the engine") as update:
            progress = partial(update, what=f"{source.name}: real engine")
            validation = run_both(source, store, requests, serving, repeat=repeat, progress=progress)
    _warn_if_disturbed(validation)
    if not is_stdout(json_file):
        _show(validation)
    write_json(validation.to_json(), json_file)


def _refuse_settings(context: typer.Context) -> None:
    """Refuse what says how the real engine is to run, where it has run already."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name not in _WITH_KEPT_RUNS and source is not None and source.name == "COMMANDLINE":
            raise InvalidInputError(f"{parameter.opts[0]}: the runs that --real names hold how they were served; leave it out")


def _warn_if_disturbed(validation: Validation) -> None:
    from dooly.measure import CONTENDED_CORES

    noise, others_cores = validation.ttft.noise or 0.0, validation.machine.others_cores
    if others_cores > CONTENDED_CORES or noise > _LOUD:
        typer.echo(
            f"dooly: warning: the real runs were disturbed: other processes kept {others_cores:.2f} cores busy, and "
            f"the runs differ by {100 * noise:.0f} % in TTFT; leave the machine alone and validate again",
            err=True,
        )


def _show(validation: Validation) -> None:
    real, simulated = [run.summary() for run in validation.real], validation.simulated.summary()
    columns = ("real mean", "simulated mean", "real p90", "simulated p90", "error of mean", "MAPE", "noise")
    table = new_table("ms", *columns, numbers=columns)
    reports: dict[str, MetricReport | None] = {"ttft": validation.ttft, "tpot": validation.tpot}
    for metric, report in reports.items():
        if report is None:
            table.add_row(metric.upper(), *("-" for _ in columns))
            continue
        key = f"{metric}_s"
        times = []
        for statistic in ("mean", "p90"):
            times += [mean(run[key][statistic] for run in real), simulated[key][statistic]]
        fractions = (_percent(report.mean_error, "+"), _percent(report.mape), _percent(report.noise))
        table.add_row(metric.upper(), *(f"{1e3 * time:.1f}" for time in times), *fractions)
    line = (
        f"{simulated['requests']} requests; real: mean of {len(real)} runs of {mean(run['wall_s'] for run in real):.1f} s, "
        f"which differ by the noise; simulated in {simulated['wall_s']:.2f} s"
    )
    step = validation.step
    steps = (
        f"latencies of the {step.num_steps} real steps, each of its own batch: MAPE {_percent(step.mape)}, median "
        f"{_percent(step.median_error)}, all together {_percent(step.mean_error, '+')}"
    )
    show(table, "\n".join((line, steps, *_machine_line(validation))))


def _machine_line(validation: Validation) -> Iterator[str]:
    """Yield how fast the machine was beside when it was profiled, where that is known."""
    if validation.slowdown is not None:
        compute, memory = (_percent(fraction, "+") for fraction in validation.slowdown)
        yield (
            f"the machine itself, beside when it was profiled: computing takes {compute}, reading weights {memory}; the "
            "simulation is of the machine as it was profiled"
        )


def _percent(fraction: float | None, sign: str = "") -> str:
    return "-" if fraction is None else f"{100 * fraction:{sign}.1f} %"
