"""What commands print: tables and JSON on stdout, progress on stderr."""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dooly.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

_LINE_EVERY_S = 30
"""Seconds between two lines of progress where stderr is no terminal."""
_WIDTH = 240
"""Columns of a table that goes to a file or a pipe: enough that rows do not fold; COLUMNS says otherwise."""
ACCURACY_PAGES = {True: "docs/gpu-answers.md", False: "docs/accuracy.md"}
"""Where it is told how far answers are from real engines: for listed devices, and for what was measured here."""
TEXT_WIDTH = 100
"""The same of a table of sentences, which are read better folded."""
_MUCH_EXTRAPOLATED = 0.05
"""Fraction of all seconds from which on extrapolation is worth one."""


def new_table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """Return an empty table; the columns in `numbers` are set flush right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return table


def show(table: Table, summary: str | None = None, width: int = _WIDTH) -> None:
    """Print a table on stdout, and a line below it; folded at `width` columns where stdout is no terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
    else:
        if "COLUMNS" not in os.environ:
            console.width = width
        with console.capture() as printed:
            console.print(table)
        typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
    if summary is not None:
        console.print(f" {summary}", markup=False, soft_wrap=True)


def write_json(data: dict[str, Any], path: Path | None) -> bool:
    """Write `data` to a file, to stdout where the path is `-`, or nowhere.

    Returns:
        Whether stdout is still free for a table.
    """
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    if path == Path("-"):
        typer.echo(text, nl=False)
        return False
    if path is not None:
        with writing(path):
            path.write_text(text, encoding="utf-8")
    return True


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in one line which file could not be written.

    Raises:
        OutputError: It could not.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read it has seen enough
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); make room there, or give another file"
        ) from error


def is_stdout(path: Path | None) -> bool:
    """Tell whether JSON goes to stdout, so that no table does."""
    return path == Path("-")


def warn_if_extrapolated(model: str, share: float | None) -> None:
    """Say so where a good part of the answer is from steps that go beyond what was measured."""
    if share is not None and share > _MUCH_EXTRAPOLATED:
        typer.echo(
            f"dooly: warning: {model}: {share:.0%} of the seconds are of steps with more tokens, or more for attention to "
            "read, than any that was measured; simulate with a smaller --max-num-batched-tokens or --max-num-seqs, or with --db "
            "see by `dooly profile --dry-run` what is not measured yet",
            err=True,
        )


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Show on stderr how far work is until the scope ends: a bar on a terminal, else a line now and then.

    Yields:
        What takes (done, total, what=description).
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        spoke = time.monotonic()

        def update(done: int, total: int, what: str = description) -> None:
            nonlocal spoke
            progress.update(task, completed=done, total=total, description=what)
            if progress.disable and time.monotonic() - spoke >= _LINE_EVERY_S:
                spoke = time.monotonic()
                typer.echo(f"{what}: {done} of {total}", err=True)

        yield update
