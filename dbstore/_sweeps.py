"""How records and documents lie in Zarr v3 groups; this module knows no disk.

    (root)                                        attribute `dbstore` holds the schema version
    records/<signature>/<environment>/<digest>    a group of one or many records; attributes `records` and `offsets`
        samples_ns                                int64 array: all samples, record `i` from `offsets[i]` to `offsets[i + 1]`
    <kind>/<digest>                               a group whose attribute `document` is a JSON object

A record group is named by the digest of its records' digests, so equal content has one name. The attribute `digest` of a group is
that of its other attributes.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from dbstore._earlier import READABLE_VERSIONS
from dbstore._errors import DamagedRecordError, InvalidRecordError, SchemaVersionError, StoreError
from dbstore._files import GROUP
from dbstore._json import JSON, JsonObject, canonical_json, digest
from dbstore._record import Record, content_digest
from dbstore._zarr import ARRAY, CHUNK, decode_group_file, decode_samples, encode_group_file, encode_samples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SCHEMA_VERSION = READABLE_VERSIONS[-1]
"""Version of the layout that this code writes."""
RECORDS = "records"
Kind = Literal["environments", "operations", "regressors", "traces"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DERIVED: frozenset[Kind] = frozenset(("regressors", "traces"))
"""Documents that anyone may make anew from what their digest stands for: two of one digest serve alike, whatever they say."""
SWEEP_FILES = (GROUP, f"{ARRAY}/{GROUP}", CHUNK)
"""The files of a record group; the array is one chunk, and an empty array has none."""


def sort_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return the distinct records ordered by point, then by digest."""
    return tuple(sorted(set(records), key=lambda record: (canonical_json(record.point), record.digest)))


def sweep_name(digests: Sequence[str]) -> str:
    """Return the name of the group that holds the records of these digests."""
    return digest("\n".join(sorted(digests)))


def encode_root() -> bytes:
    """Return the group file of a store's root."""
    return encode_group("", {"dbstore": {"schema_version": SCHEMA_VERSION}})[GROUP]


def decode_root(content: bytes, place: str) -> int:
    """Return the schema version in the root's group file of the store at `place`.

    Raises:
        SchemaVersionError: this version reads no such layout.
        StoreError: it is the group file of something else.
    """
    try:
        found = decode_group_file(content)["dbstore"]["schema_version"]
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{place}/{GROUP}: is not the root of a latency store ({error!r}); give the path of one") from error
    if found not in READABLE_VERSIONS:
        raise SchemaVersionError(
            f"{place}: has store schema version {found}, this version reads {READABLE_VERSIONS[0]} to {SCHEMA_VERSION}; "
            "install a dooly that reads it, or profile into a new --db PATH"
        )
    return int(found)


def encode_group(path: str, attributes: Mapping[str, JSON], samples_ns: npt.NDArray[np.int64] | None = None) -> dict[str, bytes]:
    """Return the files of the group `path` and of its parents."""
    parts = path.split("/") if path else []
    files = {"/".join([*parts[:depth], GROUP]): encode_group_file({}) for depth in range(len(parts))}
    at = f"{path}/" if path else ""
    files[f"{at}{GROUP}"] = encode_group_file(attributes)
    if samples_ns is not None:
        files |= {f"{at}{name}": content for name, content in encode_samples(samples_ns).items()}
    return files


def is_parent(content: bytes) -> bool:
    """Tell whether this is the file of a group above documents or records."""
    try:
        return not decode_group_file(content)
    except ValueError:
        return False


def encode_sweep(path: str, records: Sequence[Record]) -> dict[str, bytes]:
    """Return the files of the group `path` that holds `records`."""
    offsets = np.cumsum([0, *(record.samples_ns.size for record in records)])
    entries = [
        {
            "digest": record.digest,
            "point": json.loads(canonical_json(record.point)),
            "attributes": json.loads(canonical_json(record.attributes)),
            "infeasible": record.infeasible,
        }
        for record in records
    ]
    samples_ns = np.concatenate([record.samples_ns for record in records])
    return encode_group(path, _sealed({"offsets": offsets.tolist(), "records": entries}), samples_ns)


def encode_document(path: str, document: JsonObject) -> dict[str, bytes]:
    """Return the files of the group `path` that holds `document`."""
    return encode_group(path, _sealed({"document": json.loads(document.text)}))


def decode_document(content: bytes, place: str) -> dict[str, JSON]:
    """Return the document in the group file found at `place`.

    Raises:
        DamagedRecordError: it was altered.
    """
    return dict(_unsealed(content, place)["document"])


def decode_entries(name: str, content: bytes, place: str) -> list[dict[str, JSON]]:
    """Return what a record group's file says of each record: digest, point, attributes, infeasible, start and stop.

    Raises:
        DamagedRecordError: it was altered.
    """
    attributes = _unsealed(content, place)
    entries = attributes["records"]
    if sweep_name([entry["digest"] for entry in entries]) != name:
        raise DamagedRecordError(f"{place}/{GROUP}: its records do not match the group's name; {_next_step(place)}")
    return [
        {**entry, "start": start, "stop": stop}
        for entry, (start, stop) in zip(entries, pairwise(attributes["offsets"]), strict=True)
    ]


def decode_sweep(key: tuple[str, str], name: str, files: Mapping[str, bytes], place: str) -> tuple[Record, ...]:
    """Return the records of one group, every digest and checksum verified.

    Raises:
        DamagedRecordError: a file is missing, fails its checksum or was altered.
    """
    records = []
    for entry, samples in _decode_parts(name, files, place):
        try:
            record = Record(*key, entry["point"], samples, entry["attributes"], entry["infeasible"])
        except InvalidRecordError as error:
            raise DamagedRecordError(f"{place}: holds an invalid record ({error}); {_next_step(place)}") from error
        if record.digest != entry["digest"]:
            raise DamagedRecordError(f"{place}: record {entry['digest']} differs from its digest; {_next_step(place)}")
        records.append(record)
    return tuple(records)


def check_sweep(key: tuple[str, str], name: str, files: Mapping[str, bytes], place: str) -> None:
    """Verify every digest and checksum of one group; makes no records, and so takes a fraction of the time of reading them.

    Raises:
        DamagedRecordError: a file is missing, fails its checksum or was altered.
    """
    for entry, samples in _decode_parts(name, files, place):
        if content_digest(key, entry, samples) != entry["digest"]:
            raise DamagedRecordError(f"{place}: record {entry['digest']} differs from its digest; {_next_step(place)}")


def _decode_parts(name: str, files: Mapping[str, bytes], place: str) -> Iterator[tuple[dict[str, JSON], npt.NDArray[np.int64]]]:
    """Yield what a group says of each record, with its samples."""
    entries = decode_entries(name, files[GROUP], place)
    samples_ns = decode_samples(files, place, _next_step(place))
    for entry in entries:
        yield entry, samples_ns[entry["start"] : entry["stop"]]


def _sealed(attributes: dict[str, JSON]) -> dict[str, JSON]:
    return {**attributes, "digest": digest(canonical_json(attributes))}


def _unsealed(content: bytes, place: str) -> dict[str, JSON]:
    try:
        attributes = decode_group_file(content)
        found = attributes.pop("digest")
    except (ValueError, LookupError) as error:
        raise DamagedRecordError(f"{place}/{GROUP}: is no group file of a store ({error!r}); {_next_step(place)}") from error
    if found != digest(canonical_json(attributes)):
        raise DamagedRecordError(f"{place}/{GROUP}: differs from its digest; {_next_step(place)}")
    return attributes


def _next_step(place: str) -> str:
    return f"remove {place} and run `dooly profile` again"
