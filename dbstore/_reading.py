"""Reading whole record groups as of one moment, while others write and compact beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbstore import _sweeps
from dbstore._earlier import current_point, current_record
from dbstore._errors import StoreError
from dbstore._files import GROUP, Files
from dbstore._json import uncollected
from dbstore._sweeps import RECORDS, SWEEP_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dbstore._json import JSON
    from dbstore._record import Record

_ATTEMPTS = 20


def key_path(key: tuple[str, str]) -> str:
    """Return the path below which the record groups of (signature, environment digest) lie."""
    return f"{RECORDS}/{key[0]}/{key[1]}"


def read_keys(files: Files) -> Iterator[tuple[str, str]]:
    """Yield every (signature, environment digest) that has records, sorted."""
    for signature in files.children(RECORDS):
        for environment in files.children(f"{RECORDS}/{signature}"):
            yield signature, environment


def read_entries(files: Files, key: tuple[str, str]) -> dict[str, dict[str, JSON]]:
    """Return what the groups of one key say of their records, by the digests that stand there; reads no samples."""
    path = key_path(key)
    with uncollected():
        return {
            entry["digest"]: {**entry, "point": current_point(entry["point"])}
            for name, found in _read_groups(files, path, (GROUP,)).items()
            for entry in _sweeps.decode_entries(name, found[GROUP], files.locate(f"{path}/{name}"))
        }


def read_sweeps(files: Files, key: tuple[str, str]) -> dict[str, tuple[Record, ...]]:
    """Return by group name the records of one key, every digest and checksum verified."""
    path = key_path(key)
    with uncollected():
        return {
            name: tuple(map(current_record, _sweeps.decode_sweep(key, name, found, files.locate(f"{path}/{name}"))))
            for name, found in _read_groups(files, path, SWEEP_FILES).items()
        }


def _read_groups(files: Files, path: str, parts: Sequence[str]) -> dict[str, dict[str, bytes]]:
    for _ in range(_ATTEMPTS):
        names = files.children(path)
        found = files.read([f"{path}/{name}/{part}" for name in names for part in parts])
        # A group that a compaction took away meanwhile lies in another one that this listing may not have seen.
        if set(names) <= set(files.children(path)):
            return {name: {part: found[at] for part in parts if (at := f"{path}/{name}/{part}") in found} for name in names}
    raise StoreError(f"{files.locate(path)}: changed during each of {_ATTEMPTS} attempts to read it; try again")
