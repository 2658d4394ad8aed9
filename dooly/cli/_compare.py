"""`dooly compare`: a simulation beside a real engine's run of the same requests."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from dooly.cli._options import HtmlFile, JsonFile  # noqa: TC001 - as above
from dooly.cli._output import new_table, show, write_json


def compare(
    simulated: Annotated[Path, typer.Argument(metavar="SIMULATED", help="The CSV that `dooly simulate --csv` wrote.")],
    real: Annotated[
        Path,
        typer.Argument(
            metavar="REAL", help="LLMServingSim's requests.jsonl, or a JSON of `vllm bench serve --save-detailed`; or a CSV."
        ),
    ],
    *,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
) -> None:
    """Compare a simulation with a real run; give the run's file as --workload to simulate its requests."""
    from dooly.simulation import compare_runs, read_run
    from dooly.simulation._comparison import STATISTICS

    runs = {"simulated": read_run(simulated), "real": read_run(real)}
    found = compare_runs(runs["simulated"], runs["real"])
    if html_file is not None:
        from dooly.report import write_comparison

        write_comparison(runs, f"{simulated.name} beside {real.name}", html_file)
    document = {"schema": 1, **{row.metric: row.to_json() for row in found}}
    if not write_json(document, json_file):
        return
    table = new_table("ms", *STATISTICS, "per request", numbers=(*STATISTICS, "per request"))
    for row in found:
        name = row.metric.upper()
        table.add_row(f"{name} real", *(f"{1e3 * value:.1f}" for value in row.real_s), "")
        table.add_row(f"{name} simulated", *(f"{1e3 * value:.1f}" for value in row.simulated_s), "")
        table.add_row(
            "  error",
            *("" if error is None else f"{error:+.1%}" for error in row.errors),
            "" if row.mape is None else f"{row.mape:.1%}",
        )
    show(table)
