"""What a reader of another tool's files says of a model: rows placed at its operations, and what found no place.

A reader places rows by what the operations are. Nothing is dropped in silence: rows without an operation, and operations without
rows, are told.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.batch import Batch
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Rows = list[dict[str, str]]

ROW = "row"
"""Where a row of a CSV file has its number."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows of a file that tell what one operation takes."""

    operation: TracedOperation
    """The operation."""
    batches: tuple[Batch, ...]
    """What it ran over, a batch a row."""
    latency_ns: Floats
    """What it took, in nanoseconds, shape (num_rows,)."""
    rows: str
    """Where the rows are: file, and what tells them there."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the files of a tool say of a model's operations."""

    placed: tuple[Placed, ...]
    """Rows that found their operations."""
    unplaced: Mapping[str, int]
    """Rows that found none: what they are of, and how many."""
    facts: Mapping[str, Any]
    """Fields of the environment that the files tell."""
    others: tuple[TracedOperation, ...] = ()
    """Operations that the files tell of whatever the model, by which the families of its own are fitted."""
    notes: tuple[str, ...] = ()
    """What to know of the files beside."""


def sized_batches(operation: TracedOperation, sizes: Iterable[int]) -> tuple[Batch, ...]:
    """Return batches in which an operation's one request dimension has some sizes: of one request, or of one token each."""
    if operation.request_dims == ("num_tokens",):
        return tuple(Batch((size,), (0,)) for size in sizes)
    return tuple(Batch((1,) * size, (0,) * size) for size in sizes)


def measured_operations(traced: TracedModel) -> tuple[TracedOperation, ...]:
    """Return the operations that a tool may have measured, each signature once: none of what the engine does around them."""
    found: dict[str, TracedOperation] = {}
    for operation in traced.operations:
        if operation.stage != "engine":
            found.setdefault(operation.signature, operation)
    return tuple(found.values())


def without_rows(reading: Reading, traced: TracedModel) -> tuple[str, ...]:
    """Return the operations of a model that no row was placed at, by module."""
    found = {placed.operation.signature for placed in reading.placed}
    lacking = (op for op in measured_operations(traced) if op.signature not in found)
    return tuple(op.module if op.module.endswith(op.name) else f"{op.module} {op.name}" for op in lacking)


def ranks_of(traced: TracedModel) -> int:
    """Return the tensor-parallel ranks that a table is of."""
    return int(traced.environment.get("tensor_parallel_size", 1))


def check_ranks(path: Path, ranks: int, known: Iterable[int]) -> None:
    """Refuse ranks that files hold nothing for.

    Raises:
        InvalidInputError: They do not; the message names those they have.
    """
    if ranks not in (found := sorted(set(known))):
        raise InvalidInputError(
            f"{path}: holds nothing for {ranks} tensor-parallel ranks, only for {', '.join(map(str, found)) or 'none'}; choose "
            "--tensor-parallel-size accordingly"
        )


def read_rows(path: Path, columns: Sequence[str], give: str) -> Rows:
    """Return the rows of a CSV file.

    Args:
        path: The file.
        columns: What it must have.
        give: What to give where it cannot be read or is another.

    Raises:
        InvalidInputError: It cannot be read, or lacks a column.
    """
    try:
        with path.open(newline="") as handle:
            rows = [{**row, ROW: str(number)} for number, row in enumerate(csv.DictReader(handle), 1)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"{path}: cannot be read ({reason}); give {give}") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InvalidInputError(f"{path}: lacks the column {missing[0]}; give {give}")
    return rows


def numbers(path: Path, rows: Rows, column: str) -> Floats:
    """Return a column of rows as numbers, shape (num_rows,).

    Raises:
        InvalidInputError: One is no number, or below 0.
    """
    found = np.empty(len(rows))
    for place, row in enumerate(rows):
        try:
            found[place] = float(row[column])
        except (TypeError, ValueError):
            found[place] = np.nan
        if not 0 <= found[place] < np.inf:
            raise InvalidInputError(f"{path}, row {row[ROW]}: {column} is {row[column]!r}, no number of at least 0; correct it")
    return found


def counts(path: Path, rows: Rows, column: str) -> list[int]:
    """Return a column of rows as whole numbers.

    Raises:
        InvalidInputError: One is no whole number, or below 0.
    """
    found = numbers(path, rows, column)
    for row, value in zip(rows, found, strict=True):
        if not value.is_integer():
            raise InvalidInputError(f"{path}, row {row[ROW]}: {column} is {row[column]!r}, no whole number; correct it")
    return [int(value) for value in found]
