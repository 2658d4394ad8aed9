"""The store handle: opening, and reading, writing, compacting and merging records and documents."""

from __future__ import annotations

import os
from itertools import chain
from typing import TYPE_CHECKING, Literal

from dbstore import _sweeps
from dbstore._environment import Environment
from dbstore._errors import InvalidRecordError, RecordNotFoundError, StoreError, StoreNotFoundError
from dbstore._files import GROUP, Files
from dbstore._json import JSON, JsonObject
from dbstore._json import digest as digest_of
from dbstore._open import open_files
from dbstore._reading import key_path, read_entries, read_keys, read_sweeps
from dbstore._record import Record, checked_name
from dbstore._survey import Problem, StoreInfo, survey, verify
from dbstore._sweeps import KINDS, SCHEMA_VERSION, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


class Store:
    """A latency store: immutable records keyed by (signature, environment), and documents.

    Any number of processes may read and write one store without a lock: a group appears whole, under a name made from its
    content, and is never changed. A writer that is killed loses at most the record in flight, and leaves nothing that readers
    or `verify` see; the next writer to open the store sweeps its temporary away.

    At a URL nothing can be renamed atomically, so a group's own `zarr.json` is written last instead. Readers still see whole
    groups only, and writers need no lock; but a killed writer may leave a chunk, which takes space until someone removes what
    `verify` lists.

    Examples:
        >>> store = dooly.Store.open("latencies", "a")
        >>> store.info().num_records, store.writable
        (0, True)
        >>> dooly.Store.open("latencies").writable
        False
    """

    __slots__ = ("_environments", "_files", "_version", "_writable")

    def __init__(self, files: Files, version: int, *, writable: bool) -> None:
        """Use `Store.open`."""
        self._files = files
        self._version = version
        self._writable = writable
        self._environments: set[str] = set()

    @classmethod
    def open(cls, place: str | os.PathLike[str] | Files, mode: Literal["r", "a"] = "r") -> Store:
        """Open the store at a local path, an fsspec URL or in a backend; mode "a" may write and creates what is missing.

        A store of an earlier layout reads as one of this. Mode "a" marks it as one of this, so that earlier versions refuse it;
        its groups stay as they are until they are compacted.

        Raises:
            StoreNotFoundError: mode is "r" and there is no store.
            SchemaVersionError: the store has another layout than this version reads.
            StoreError: the place holds something else than a latency store, is empty text, or no place at all.
        """
        if mode not in ("r", "a"):
            raise StoreError(f"Store.open: mode must be 'r' or 'a', got {mode!r}")
        if not isinstance(place, str | os.PathLike | Files):
            raise StoreError(f"Store.open: {place!r} is no place; give a folder or a URL")
        if isinstance(place, str) and not place.strip():
            raise StoreError("Store.open: the place is empty; give a folder or a URL")
        files = open_files(place)
        shown = files.locate("")
        root = files.read([GROUP])
        if GROUP not in root and mode == "r":
            asked = shown if isinstance(place, Files) else place
            raise StoreNotFoundError(f"{shown}: holds no latency store; make one with `dooly profile MODEL --db {asked}`")
        if GROUP not in root:
            if next(files.walk(), None) is not None:
                raise StoreError(f"{shown}: is not empty and holds no latency store; give a new or empty folder")
            files.write_root(_sweeps.encode_root())
            root = files.read([GROUP])
        found = _sweeps.decode_root(root[GROUP], shown)
        if mode == "a":
            if found != SCHEMA_VERSION:  # an earlier version would not read what is to be written
                files.write_root(_sweeps.encode_root())
            if files.can_sweep:
                files.sweep()
            found = SCHEMA_VERSION
        return cls(files, found, writable=mode == "a")

    @property
    def writable(self) -> bool:
        """Whether the store is open for writing."""
        return self._writable

    @property
    def is_current(self) -> bool:
        """Whether its layout is the one that this version writes."""
        return self._version == SCHEMA_VERSION

    def keys(self) -> Iterator[tuple[str, str]]:
        """Yield every (signature, environment digest) that has records, sorted."""
        return read_keys(self._files)

    def read(self, signature: str, environment: str) -> tuple[Record, ...]:
        """Return the records of one key, each once, ordered by the canonical text of their points.

        Raises:
            RecordNotFoundError: there are none.
            DamagedRecordError: a file is missing, fails its checksum or was altered; the message names it.
        """
        return _sweeps.sort_records(chain.from_iterable(self._read_sweeps((signature, environment)).values()))

    def groups(self, signature: str, environment: str) -> tuple[str, ...]:
        """Return the sorted names of the groups that hold the records of one key; empty if there are none.

        A name is made from the digests of a group's records, so the same names stand for the same records, and listing them reads
        no file. Folding groups into one changes them.
        """
        return self._files.children(key_path((signature, environment)))

    def points(self, signature: str, environment: str) -> tuple[JsonObject, ...]:
        """Return the distinct points that have a record, feasible or not, ordered by text; reads no samples."""
        points = {JsonObject(entry["point"]) for entry in read_entries(self._files, (signature, environment)).values()}
        return tuple(sorted(points, key=lambda point: point.text))

    def has(self, signature: str, environment: str, point: Mapping[str, JSON]) -> bool:
        """Tell whether `point` has a record, feasible or not."""
        return JsonObject(point) in self.points(signature, environment)

    def write(self, *records: Record) -> None:
        """Add records; those of one key that are given together are stored as one group.

        Raises:
            StoreError: the store is read only, or lacks the document of a record's environment.
        """
        self._check_writable()
        keys: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            self._check_environment(record)
            keys.setdefault(record.key, []).append(record)
        for key, group in keys.items():
            self._place_sweep(key, _sweeps.sort_records(group))

    def compact(self, signature: str, environment: str) -> None:
        """Fold all record groups of one key into one, so that reading it takes one chunk.

        The merged group is in place before the folded ones go, and readers drop what they see twice; so this may be killed at any
        moment, or run beside readers, writers and other compactions.

        Raises:
            RecordNotFoundError: the key has no records.
            DamagedRecordError: a record is damaged; nothing is folded.
        """
        self._check_writable()
        sweeps = self._read_sweeps((signature, environment))
        if len(sweeps) == 1:
            return
        merged = self._place_sweep((signature, environment), _sweeps.sort_records(chain.from_iterable(sweeps.values())))
        for name in sweeps.keys() - {merged}:
            self._files.remove(f"{key_path((signature, environment))}/{name}")

    def write_document(self, kind: Kind, digest: str, document: Mapping[str, JSON]) -> None:
        """Add a document under a digest that the caller made; writing the same again does nothing.

        Of traces and regressors the first stays: a digest stands for what they are made from, and any two serve alike. Of two
        others under one digest the first stays as well where they differ in fields alone that the other lacks: versions of a
        program may tell more or less beside what the digest is made from.

        Raises:
            InvalidRecordError: the document is not JSON, or is no `Environment` of this digest where kind is "environments".
            StoreError: the store is read only, or holds another document under this digest.
        """
        self._check_writable()
        path = _document_path(kind, digest)
        frozen = JsonObject(document)
        if kind == "environments" and Environment.from_json(document).digest != digest:
            raise InvalidRecordError(f"{path}: the environment's digest is {Environment.from_json(document).digest}; use that")
        self._files.place(path, _sweeps.encode_document(path, frozen))
        held = self.read_document(kind, digest)
        both = held.keys() & frozen.keys()
        if kind not in _sweeps.DERIVED and any(JsonObject({"": held[name]}) != JsonObject({"": frozen[name]}) for name in both):
            raise StoreError(f"{self._files.locate(path)}: holds another document; documents never change, use another digest")

    def read_document(self, kind: Kind, digest: str) -> dict[str, JSON]:
        """Return a document.

        Raises:
            RecordNotFoundError: there is none.
            DamagedRecordError: it was altered.
        """
        path = _document_path(kind, digest)
        found = self._files.read([f"{path}/{GROUP}"])
        if not found:
            raise RecordNotFoundError(f"{self._files.locate(path)}: not in the store; documents('{kind}') lists what is")
        return _sweeps.decode_document(found[f"{path}/{GROUP}"], self._files.locate(path))

    def remove_regressor(self, digest: str) -> None:
        """Remove a document of regressors, which follow from the records; does nothing if it is gone. No other goes.

        Raises:
            StoreError: the store is read only.
        """
        self._check_writable()
        self._files.remove(_document_path("regressors", digest))

    def documents(self, kind: Kind) -> tuple[str, ...]:
        """Return the sorted digests of the documents of one kind."""
        return self._files.children(_checked_kind(kind))

    def merge(self, other: Store) -> int:
        """Copy the documents and records that this store lacks from `other`; return the number of records copied.

        Regressors stay where they are: they were fitted to what lies there, and follow from the records here.
        """
        self._check_writable()
        for kind in KINDS:
            if kind == "regressors":
                continue
            for digest in other.documents(kind):
                self.write_document(kind, digest, other.read_document(kind, digest))
        num_copied = 0
        for key in read_keys(other._files):
            if read_entries(other._files, key).keys() <= read_entries(self._files, key).keys():
                continue
            # Records of an earlier layout go by other digests than those that their groups list.
            known = set(chain.from_iterable(read_sweeps(self._files, key).values()))
            lacking = [record for record in other.read(*key) if record not in known]
            self.write(*lacking)
            num_copied += len(lacking)
        return num_copied

    def verify(self) -> tuple[Problem, ...]:
        """Check every group, digest, checksum and stray file; return what is wrong, nothing if all is well."""
        return verify(self._files)

    def info(self) -> StoreInfo:
        """Return counts, size, environments and measuring time."""
        return survey(self._files)

    def fingerprint(self) -> str:
        """Return a digest that changes whenever records, environments or traces come or go; reads names alone.

        Groups are named by their content and placed whole, so two equal fingerprints stand for the same measurements. Kept
        regressors do not count: they follow from the records.
        """
        names = [f"{kind}/{name}" for kind in KINDS if kind != "regressors" for name in self.documents(kind)]
        names += [f"{'/'.join(key)}/{name}" for key in self.keys() for name in self.groups(*key)]
        return digest_of("\n".join(names))

    def _read_sweeps(self, key: tuple[str, str]) -> dict[str, tuple[Record, ...]]:
        sweeps = read_sweeps(self._files, key)
        if not sweeps:
            place = self._files.locate(key_path(key))
            raise RecordNotFoundError(f"{place}: no records of this key; measure it with `dooly profile MODEL --db PATH`")
        return sweeps

    def _place_sweep(self, key: tuple[str, str], records: Sequence[Record]) -> str:
        name = _sweeps.sweep_name([record.digest for record in records])
        path = f"{key_path(key)}/{name}"
        self._files.place(path, _sweeps.encode_sweep(path, records))
        return name

    def _check_writable(self) -> None:
        if not self._writable:
            raise StoreError(f"{self._files.locate('')}: is open for reading; open it with mode='a' to write")

    def _check_environment(self, record: Record) -> None:
        if record.environment not in self._environments:
            self._environments.update(self._files.children("environments"))
        if record.environment not in self._environments:
            raise StoreError(
                f"{self._files.locate('')}: lacks environment {record.environment} of a record; "
                "first write_document('environments', environment.digest, environment.to_json())"
            )


def _checked_kind(kind: str) -> str:
    if kind not in KINDS:
        raise InvalidRecordError(f"document kind: must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def _document_path(kind: str, digest: str) -> str:
    return f"{_checked_kind(kind)}/{checked_name(digest, 'document digest')}"
