"""`dooly db export`: records as a table, or a model's latencies as the files that another simulator reads."""

from __future__ import annotations

import csv
import io
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.cli._options import LIMITS, HardwareName, engine_flags, writable_or_stdout
from dooly.cli._output import progress_bar
from dooly.cli._stores import serving_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dbstore import Record
    from dooly.adapters import ExportResult

_STDOUT = Path("-")


class Tool(StrEnum):
    """What reads an export."""

    TABLE = "table"
    LLMSERVINGSIM = "llmservingsim"
    VIDUR = "vidur"
    PLANNER = "planner"
    BLIS = "blis"


@engine_flags("dtype", "tensor_parallel_size", "quantization", "kv_cache_dtype", *LIMITS, unset=LIMITS)
def export(  # noqa: PLR0913 - one argument an option
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH...", help="Latency stores; one for another tool, or none with --hardware.")
    ] = None,
    *,
    tool: Annotated[
        Tool,
        typer.Option("--format", help="A table of records, or the files of LLMServingSim, Vidur, Dynamo's mocker or BLIS."),
    ] = Tool.TABLE,
    output: Annotated[
        Path,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Of a table a file: CSV, or JSON if it ends in .json, - is CSV on stdout; of llmservingsim and vidur a folder; "
            "of planner an .npz and of blis a .json file.",
        ),
    ] = _STDOUT,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="For another tool: the model, a folder or a listed name.")
    ] = None,
    hardware: HardwareName = None,
    settings: dict[str, Any],
) -> None:
    """Write a table of records, one row a measured point; or with --format a model's latencies as another tool reads them."""
    if tool is Tool.TABLE:
        if not paths or model is not None or hardware is not None:
            raise typer.BadParameter("a table is of stores alone: give PATH..., and --model or --hardware with a --format only")
        _write_table(paths, output)
        return
    if output == _STDOUT:
        raise typer.BadParameter(f"--format {tool} writes files: give --output")
    if model is None or (hardware is None) == (not paths) or len(paths or ()) > 1:
        raise typer.BadParameter(f"--format {tool} is of one model: give --model, and one PATH or --hardware NAME")
    _write_for(tool, output, model, (*(paths or ()), None)[0], hardware, settings)


def _write_for(  # noqa: PLR0913, PLR0917 - as the command has them
    tool: Tool, output: Path, model: str, path: str | None, hardware: str | None, settings: dict[str, Any]
) -> None:
    """Write what another tool reads."""
    from dbstore import Store
    from dooly.engines import find_model
    from dooly.predict import load_latency_model

    source = find_model(model)
    with progress_bar(f"{source.name}: exporting"):
        store = None if path is None else Store.open(path)
        serving = serving_for(source, hardware, settings)
        latency = load_latency_model(store, source, serving, hardware=hardware)
        result = _exporter(tool)(latency, source, serving, output)
    for note in result.notes:
        typer.echo(f"dooly: note: {note}", err=True)
    typer.echo(f"{output}: {result.num_rows:,} values in {', '.join(str(file) for file in result.files)}")


def _exporter(tool: Tool) -> Callable[..., ExportResult]:
    """Return what writes the files of a tool."""
    from dooly import adapters

    exporters: dict[Tool, Callable[..., ExportResult]] = {
        Tool.LLMSERVINGSIM: adapters.export_llmservingsim,
        Tool.VIDUR: adapters.export_vidur,
        Tool.PLANNER: adapters.export_planner,
        Tool.BLIS: adapters.export_blis,
    }
    return exporters[tool]


def _write_table(paths: Sequence[str], output: Path) -> None:
    """Write the records of stores."""
    from dbstore import Store

    writable_or_stdout(output)
    stores = [Store.open(path) for path in paths]
    rows = [_row(record) for store in stores for key in store.keys() for record in store.read(*key)]  # noqa: SIM118 - no mapping
    text = json.dumps(rows, indent=2) + "\n" if output.suffix == ".json" else "".join(_csv_lines(rows))
    if output == _STDOUT:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8", newline="")


def _row(record: Record) -> dict[str, Any]:
    from dbstore import canonical_json

    return {
        "signature": record.signature,
        "environment": record.environment,
        "point": json.loads(canonical_json(record.point)),
        "median_ns": None if record.infeasible is not None else record.median_ns,
        "num_samples": int(record.samples_ns.size),
        "infeasible": record.infeasible,
    }


def _csv_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "signature,environment,point,median_ns,num_samples,infeasible\n"
    for row in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow((row | {"point": json.dumps(row["point"])}).values())
        yield line.getvalue()
