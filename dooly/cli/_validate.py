"""`dooly validate`: the real engine and the simulation side by side, on one workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._options import Database, JsonFile, Model, WorkloadText, engine_flags
from dooly.cli._output import new_table, progress_bar, show, write_json
from dooly.engines import ServingConfig, find_model

if TYPE_CHECKING:
    from dooly.validate import MetricReport, Validation


@engine_flags()
def validate(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    db: Database,
    workload: WorkloadText,
    repeat: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of the real engine, whose spread is the noise.")] = 2,
    json_file: JsonFile = None,
    serving: ServingConfig,
) -> None:
    """Run the real engine beside the simulation, and print the error next to the engine's own noise."""
    from dbstore import Store
    from dooly.simulate import parse_workload
    from dooly.validate import validate as run_both

    source = find_model(model)
    requests = parse_workload(workload)
    store = Store.open(db)
    with progress_bar(f"{source.name}: simulating, starting the engine") as update:

        def progress(what: str, done: int, total: int) -> None:
            update(done, total, f"{source.name}: {what}")

        validation = run_both(source, store, requests, serving, repeat=repeat, progress=progress)
    if write_json(validation.to_json(), json_file):
        _show(validation)


def _show(validation: Validation) -> None:
    real, simulated = validation.real[0].summary(), validation.simulated.summary()
    columns = ("real mean", "simulated mean", "real p90", "simulated p90", "error of mean", "MAPE", "noise")
    table = new_table("ms", *columns, numbers=columns)
    for metric in ("ttft", "tpot"):
        error: MetricReport | None = getattr(validation, metric)
        key = f"{metric}_s"
        times = [summary[key][statistic] for statistic in ("mean", "p90") for summary in (real, simulated)]
        fractions = (
            ("-", "-", "-") if error is None else (_percent(error.mean_error, "+"), _percent(error.mape), _percent(error.noise))
        )
        table.add_row(metric.upper(), *("-" if t is None else f"{1e3 * t:.1f}" for t in times), *fractions)
    table.caption = (
        f"{real['requests']} requests, {len(validation.real)} real runs of {real['wall_s']:.1f} s, "
        f"simulated in {simulated['wall_s']:.2f} s; noise is the MAPE between the real runs"
    )
    show(table)


def _percent(fraction: float | None, sign: str = "") -> str:
    return "-" if fraction is None else f"{100 * fraction:{sign}.1f} %"
