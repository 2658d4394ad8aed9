"""Records kept as columns: a million of them take tens of megabytes, and each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy.typing as npt

RecordT = TypeVar("RecordT")
_CHUNK = 4096
"""Records whose fields are made plain numbers together."""


class Columns(Sequence[RecordT], Generic[RecordT]):
    """A sequence of records, of which columns hold the fields. It is never changed."""

    def __init__(self, make: Callable[..., RecordT], **columns: npt.NDArray[Any]) -> None:
        """Take the columns.

        Args:
            make: Makes a record of its fields, by name.
            columns: Fields by name, shape (num_records,) each; those left out are as `make` has them by itself.
        """
        self._make = make
        self._columns = columns

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a field of all records, shape (num_records,)."""
        if name not in self._columns:
            default = getattr(self[0], name)
            return as_column([default] * len(self))
        return self._columns[name]

    def take(self, places: npt.NDArray[np.int64]) -> Columns[RecordT]:
        """Return the records at these places, in their order."""
        return Columns(self._make, **{name: column[places] for name, column in self._columns.items()})

    def replaced(self, **columns: npt.NDArray[Any]) -> Columns[RecordT]:
        """Return the records with other columns in place of some of theirs."""
        return Columns(self._make, **(self._columns | columns))

    def __len__(self) -> int:
        """Return how many records there are."""
        return len(next(iter(self._columns.values())))

    @overload
    def __getitem__(self, place: int) -> RecordT: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[RecordT, ...]: ...

    def __getitem__(self, place: int | slice) -> RecordT | tuple[RecordT, ...]:
        """Return a record, or those of a slice."""
        if isinstance(place, slice):
            return tuple(Columns(self._make, **{name: column[place] for name, column in self._columns.items()}))
        return self._make(**{name: column[[place]].tolist()[0] for name, column in self._columns.items()})

    def __iter__(self) -> Iterator[RecordT]:
        """Yield the records in order."""
        names = tuple(self._columns)
        for start in range(0, len(self), _CHUNK):
            parts = (column[start : start + _CHUNK].tolist() for column in self._columns.values())
            for fields in zip(*parts, strict=True):
                yield self._make(**dict(zip(names, fields, strict=True)))

    def __eq__(self, other: object) -> bool:
        """Tell whether another sequence holds equal records in the same order."""
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as any sequence of arrays

    def __repr__(self) -> str:
        """Show how many there are, and the first."""
        return f"<{len(self)} records, the first of them {self[0]}>" if len(self) else "<no records>"


def as_column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """Return values as a column: numbers as they are, tuples as objects."""
    return np.fromiter(values, object, len(values)) if len(values) and isinstance(values[0], tuple) else np.asarray(values)


def column(records: Sequence[Any], name: str) -> npt.NDArray[Any]:
    """Return a field of all records as an array, shape (num_records,)."""
    return records.column(name) if isinstance(records, Columns) else as_column([getattr(record, name) for record in records])


def taken(records: Sequence[RecordT], places: Sequence[int]) -> Sequence[RecordT]:
    """Return the records at these places, in their order."""
    if isinstance(records, Columns):
        return records.take(np.asarray(places, np.int64))
    return tuple(records[place] for place in places)


def as_columns(make: Callable[..., RecordT], records: Sequence[RecordT], names: Sequence[str]) -> Columns[RecordT]:
    """Return records as columns of these fields; the others must be as `make` has them by itself."""
    return records if isinstance(records, Columns) else Columns(make, **{name: column(records, name) for name in names})


def gathered(make: Callable[..., RecordT], records: Iterable[RecordT], names: Sequence[str]) -> Columns[RecordT]:
    """Return records that come one by one as columns of these fields, of which no more than some thousand are there at once."""
    iterator, parts = iter(records), []
    while chunk := tuple(islice(iterator, _CHUNK)):
        parts.append([column(chunk, name) for name in names])
    columns = [np.concatenate(each) for each in zip(*parts, strict=True)] or [np.empty(0, np.int64)] * len(names)
    return Columns(make, **dict(zip(names, columns, strict=True)))


def first_repeated(numbers: npt.NDArray[np.int64]) -> int | None:
    """Return the first of some numbers that occurs before in them; None where all differ."""
    found, places = np.unique(numbers, return_index=True)
    if len(found) == len(numbers):
        return None
    return int(numbers[np.setdiff1d(np.arange(len(numbers)), places)[0]])
