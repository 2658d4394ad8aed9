"""`dooly db`: look into, check, merge, export and fill latency stores."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dooly.cli._db_export import export
from dooly.cli._options import Database, engine_flags, writable
from dooly.cli._output import new_table, progress_bar, show
from dooly.cli._stores import open_to_answer
from dooly.engines import ServingConfig  # noqa: TC001 - read from the signature

if TYPE_CHECKING:
    from dooly.imports import ImportResult

db = typer.Typer(name="db", help="Look into, check, merge, export and fill latency stores.")

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Latency stores: folders or fsspec URLs.")]


@db.command()
def info(paths: Paths) -> None:
    """Show what stores hold."""
    from dbstore import Store

    for path in paths:
        store = Store.open(path)
        found = store.info()
        table = new_table("store", found.place)
        for name in ("schema_version", "num_operations", "num_records", "num_infeasible", "num_samples"):
            table.add_row(name.removeprefix("num_").replace("_", " "), f"{getattr(found, name):,}")
        table.add_row("size", f"{found.size_bytes / 2**20:.1f} MiB")
        table.add_row("measured for", f"{found.measuring_s:.1f} s")
        for environment in found.environments:
            values = environment.to_json().items()
            table.add_row(f"environment {environment.digest[:8]}", ", ".join(f"{k} {v}" for k, v in values if v is not None))
        for digest in store.documents("traces"):
            table.add_row(*_traced_row(store.read_document("traces", digest)))
        show(table)


def _traced_row(document: Any) -> tuple[str, str]:  # noqa: ANN401 - JSON
    """Return the line of a model whose trace a store holds: name, engine and what its operations were measured in."""
    traced = document["traced"]
    made = traced["environment"]
    engine = " ".join(filter(None, (made["engine"], made["engine_version"], made.get("dtype"))))
    facts = (engine, f"{len(traced['operations'])} operations", f"environment {document['environment'][:8]}")
    return f"model {document['model']}", ", ".join(facts)


@db.command()
def verify(paths: Paths) -> None:
    """Check every record, checksum and file of stores; exit with 1 if anything is wrong."""
    from dbstore import Store

    num_problems = 0
    for path in paths:
        with progress_bar(f"{path}: checking"):
            problems = Store.open(path).verify()
        for problem in problems:
            typer.echo(problem.message)
        num_problems += len(problems)
        typer.echo(f"{path}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    if num_problems:
        raise typer.Exit(1)


@db.command()
def report(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A latency store: a folder or an fsspec URL.")],
    *,
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", callback=writable, help="Write an HTML page that needs no network.")
    ],
) -> None:
    """Write how well a store knows each operation and family, what it measured, how steady the machine was, and what it cost."""
    from dooly.report import write_store

    store = open_to_answer(path)
    with progress_bar(f"{path}: reading and fitting"):
        write_store(store, html)


@db.command()
def merge(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Store to copy into; made where there is none.")],
    sources: Annotated[list[str], typer.Argument(metavar="PATH...", help="Stores to copy from.")],
) -> None:
    """Copy what the first store lacks from the others."""
    from dbstore import Store

    opened = [(source, Store.open(source)) for source in sources]
    into = Store.open(target, "a")
    for path, source in opened:
        with progress_bar(f"{path}: merging"):
            num_copied = into.merge(source)
        typer.echo(f"{path}: {num_copied:,} records copied to {target}")


@db.command("import")
@engine_flags("dtype", "tensor_parallel_size")
def import_files(  # noqa: PLR0913 - one argument an option
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model's folder, or a system's of aiconfigurator.")],
    *,
    tool: Annotated[str, typer.Option("--format", metavar="TOOL", help="llmservingsim, aiconfigurator or vidur.")],
    db: Database,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model whose operations the rows are of: a folder or a listed name.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="The device as its driver reports it, where the files do not tell.")
    ] = None,
    serving: ServingConfig,
) -> None:
    """Write what another tool measured into a store, as records of a model's own operations."""
    from dbstore import Store
    from dooly.engines import find_model
    from dooly.imports import read_measurements

    source = None if model is None else find_model(model)
    with progress_bar(f"{path}: importing"):
        measurements = read_measurements(path, source, serving, tool=tool, device=device)
        result = measurements.write(Store.open(db, "a"))
    _show_import(path, result)


def _show_import(path: str, result: ImportResult) -> None:
    """Say how many records there are, and name all that found no place."""
    for note in result.notes:
        typer.echo(f"dooly: note: {note}", err=True)
    num_left = sum(result.unplaced.values())
    typer.echo(
        f"{path}: {result.num_records:,} records of {result.num_operations:,} operations, {result.num_added:,} of them new; "
        f"{num_left:,} rows not placed{':' * bool(num_left)}"
    )
    for what, count in result.unplaced.items():
        typer.echo(f"  {what}: {count:,} rows")
    if result.without_rows:
        typer.echo("operations without rows, which go by their families or by bytes, or are refused:")
        typer.echo(f"  {', '.join(result.without_rows)}")


db.command()(export)
