"""Looking over a whole store: what it holds, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbstore import _sweeps
from dbstore._environment import Environment
from dbstore._errors import StoreError
from dbstore._files import GROUP, Files
from dbstore._json import uncollected
from dbstore._reading import key_path, read_entries, read_keys
from dbstore._sweeps import KINDS, RECORDS, SWEEP_FILES

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a store."""

    path: str
    """The group or file, as a full path or URL."""
    message: str
    """One line: place, rule, value, next step."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds."""

    place: str
    """Full path or URL."""
    schema_version: int
    """Version of the layout."""
    num_operations: int
    """Distinct signatures that have records."""
    num_keys: int
    """Distinct (signature, environment) pairs that have records."""
    num_records: int
    """Records, infeasible points included."""
    num_infeasible: int
    """Records of points that cannot be measured."""
    num_samples: int
    """Samples over all records."""
    size_bytes: int
    """Bytes in files."""
    measuring_s: float
    """Seconds spent measuring: the sum of the records' attribute `wall_s`, in so far as they have one."""
    environments: tuple[Environment, ...]
    """The environments described in the store."""


def survey(files: Files) -> StoreInfo:
    """Return what a store holds; reads no samples."""
    keys = tuple(read_keys(files))
    counts: Counter[str] = Counter()
    measuring_s = 0.0
    for key in keys:
        for entry in read_entries(files, key).values():
            counts.update(records=1, infeasible=entry["infeasible"] is not None, samples=entry["stop"] - entry["start"])
            measuring_s += entry["attributes"].get("wall_s", 0.0)
    documents = files.read(f"environments/{digest}/{GROUP}" for digest in files.children("environments"))
    return StoreInfo(
        place=files.locate(""),
        schema_version=_sweeps.decode_root(files.read([GROUP])[GROUP], files.locate("")),
        num_operations=len({signature for signature, _ in keys}),
        num_keys=len(keys),
        num_records=counts["records"],
        num_infeasible=counts["infeasible"],
        num_samples=counts["samples"],
        size_bytes=sum(size for _, size in files.walk()),
        measuring_s=measuring_s,
        environments=tuple(
            Environment.from_json(_sweeps.decode_document(content, files.locate(path).removesuffix(f"/{GROUP}")))
            for path, content in documents.items()
        ),
    )


def verify(files: Files) -> tuple[Problem, ...]:
    """Check every group, digest, checksum and stray file below the root."""
    present = [path for path, _ in files.walk()]
    expected = {GROUP, *(f"{folder}/{GROUP}" for folder in (RECORDS, *KINDS))}
    problems = [*_check_documents(files, expected), *_check_records(files, expected), *_check_parents(files)]
    # A file that is gone by now belonged to a group that a compaction folded meanwhile.
    stray = sorted(files.read(path for path in present if path not in expected))
    problems += [_problem(files, path, "belongs to no record or document; remove it") for path in stray]
    return tuple(problems)


def _problem(files: Files, path: str, rule: str) -> Problem:
    place = files.locate(path)
    return Problem(place, f"{place}: {rule}")


def _check_parents(files: Files) -> Iterator[Problem]:
    """Check the group files above documents and records, which say nothing."""
    signatures = [f"{RECORDS}/{signature}" for signature in files.children(RECORDS)]
    folders = [RECORDS, *KINDS, *signatures, *(key_path(key) for key in read_keys(files))]
    for path, content in files.read(f"{folder}/{GROUP}" for folder in folders).items():
        if not _sweeps.is_parent(content):
            yield _problem(files, path, "is no group file of a store; copy another folder's over it")


def _check_documents(files: Files, expected: set[str]) -> Iterator[Problem]:
    for kind in KINDS:
        for digest in files.children(kind):
            path = f"{kind}/{digest}"
            expected.add(f"{path}/{GROUP}")
            try:
                document = _sweeps.decode_document(files.read([f"{path}/{GROUP}"])[f"{path}/{GROUP}"], files.locate(path))
                if kind == "environments" and Environment.from_json(document).digest != digest:
                    yield _problem(files, path, "the environment has another digest; remove it and run `dooly profile` again")
            except StoreError as error:
                yield Problem(files.locate(path), str(error))


def _check_records(files: Files, expected: set[str]) -> Iterator[Problem]:
    environments = files.children("environments")
    expected.update(f"{RECORDS}/{signature}/{GROUP}" for signature in files.children(RECORDS))
    for key in read_keys(files):
        path = key_path(key)
        expected.add(f"{path}/{GROUP}")
        if key[1] not in environments:
            yield _problem(files, path, "its environment is not described; merge a store that describes it, or remove it")
        for name in files.children(path):
            expected.update(f"{path}/{name}/{part}" for part in SWEEP_FILES)
            found = files.read([f"{path}/{name}/{part}" for part in SWEEP_FILES])
            parts = {at.removeprefix(f"{path}/{name}/"): content for at, content in found.items()}
            if GROUP not in parts:  # folded by a compaction meanwhile
                continue
            try:
                with uncollected():
                    _sweeps.check_sweep(key, name, parts, files.locate(f"{path}/{name}"))
            except StoreError as error:
                # So it was if it is gone by now: its files may have been read half.
                if name in files.children(path):
                    yield Problem(files.locate(f"{path}/{name}"), str(error))
