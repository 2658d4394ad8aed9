"""`dooly.imports.import_measurements`: write what another tool measured into a store, as records of a model's own operations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import Environment, Record
from dooly.catalog import check_store, operation_table, point_of, write_described, write_imported
from dooly.engines import ServingConfig
from dooly.errors import InvalidInputError
from dooly.imports._aiconfigurator_rows import read_aiconfigurator
from dooly.imports._llmservingsim import read_bundle
from dooly.imports._reading import without_rows
from dooly.imports._vidur import read_vidur

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from dbstore import JsonObject, Store
    from dooly.engines import ModelSource
    from dooly.imports._reading import Reading
    from dooly.tracing import TracedModel

_READERS: dict[str, Callable[[Path, TracedModel], Reading]] = {
    "llmservingsim": read_bundle,
    "aiconfigurator": read_aiconfigurator,
    "vidur": read_vidur,
}


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What an import wrote, and what found no place."""

    num_records: int
    """Records that the files make for the model's operations and for others of their kinds."""
    num_added: int
    """Those of them that the store lacked."""
    num_operations: int
    """Operations that have them."""
    unplaced: Mapping[str, int]
    """Rows that no operation runs: what they are of, and how many."""
    without_rows: tuple[str, ...]
    """Operations of the model that the files have no rows for, by module."""
    environment: Environment
    """What the records were measured in, as far as the files tell."""
    notes: tuple[str, ...] = ()
    """What to know of the files beside."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a tool's files say of a model, before it is written."""

    model: ModelSource
    """The model."""
    traced: TracedModel
    """Its operations."""
    reading: Reading
    """Rows placed at them, and others."""
    environment: Environment
    """What they were measured in."""

    def write(self, store: Store) -> ImportResult:
        """Write the records that a store lacks, and the documents that lead to them; killed before the end, it may run again."""
        records, reading = _records(self.reading, self.environment), self.reading
        described = replace(self.traced, operations=(*self.traced.operations, *reading.others))
        write_described(store, self.environment, described)
        num_added = _write(store, records)
        write_imported(store, self.model, self.traced, reading.others, self.environment)
        num_operations = len({placed.operation.signature for placed in reading.placed})
        lacking = without_rows(reading, self.traced)
        counts = (len(records), num_added, num_operations)
        return ImportResult(*counts, reading.unplaced, lacking, self.environment, reading.notes)


def import_measurements(  # noqa: PLR0913 - what is measured, and of what
    store: Store,
    path: str | os.PathLike[str],
    model: ModelSource,
    serving: ServingConfig | None = None,
    *,
    tool: str,
    device: str | None = None,
) -> ImportResult:
    """Write what another tool measured into a store, as records of a model's own operations.

    Importing again adds nothing: records are known by their content.

    Args:
        store: A store that is open to write.
        path: The tool's files: a model's bundle or profiles, or a system's tables.
        model: The model whose operations the rows are matched to, by what these are.
        serving: Its element type and tensor-parallel ranks.
        tool: Who wrote the files: `llmservingsim`, `aiconfigurator` or `vidur`.
        device: The device as its driver reports it, where the files do not tell.

    Raises:
        InvalidInputError: There is no such tool; or a file is missing, cannot be read, lacks a column, is of another version, or
            has nothing for the ranks, and the message names it.
        MissingOperationError: The model's operations are not known, and there is no engine to trace it with.
    """
    opened = check_store("import_measurements", store)
    return read_measurements(path, model, serving, tool=tool, device=device).write(opened)


def read_measurements(
    path: str | os.PathLike[str],
    model: ModelSource | None,
    serving: ServingConfig | None = None,
    *,
    tool: str,
    device: str | None = None,
) -> Measurements:
    """Return what a tool's files say of a model; arguments and errors are those of `import_measurements`."""
    serving, place = serving or ServingConfig(), Path(path)
    if tool not in _READERS:
        raise InvalidInputError(f"--format: {tool!r} is none of {', '.join(_READERS)}; name the tool that wrote the files")
    if model is None:
        raise InvalidInputError("--model: none given; name the model whose operations the rows are of")
    replace(serving, tensor_parallel_size=1).require_one_rank()  # pipelines are refused
    traced = operation_table(model, serving)
    reading = _READERS[tool](place, traced)
    if not reading.placed:
        raise InvalidInputError(
            f"{place}: no row is of an operation of {model.name} in {serving.dtype}; give files of this model"
        )
    return Measurements(model, traced, reading, _environment(place, reading.facts, serving, device))


def _environment(path: Path, facts: Mapping[str, Any], serving: ServingConfig, device: str | None) -> Environment:
    """Return the environment that files tell; what they do not tell is None."""
    if device is None and facts.get("device") is None:
        raise InvalidInputError(f"{path}: does not tell the device; name it with --device, as its driver reports it")
    unknown = ("driver", "torch_version", "attention_backend", "block_size", "quantization", "num_threads")
    fields: dict[str, Any] = dict.fromkeys(unknown) | {"device_kind": "cuda", "kv_cache_dtype": "auto"}
    fields |= {"engine_version": "unknown", "dtype": serving.dtype, **facts}
    return Environment(**fields | ({} if device is None else {"device": device}))


def _records(reading: Reading, environment: Environment) -> tuple[Record, ...]:
    """Return a record for each point of each operation; what was measured there several times is several samples."""
    found: dict[tuple[str, JsonObject], list[tuple[float, str]]] = {}
    for placed in reading.placed:
        for batch, latency_ns in zip(placed.batches, placed.latency_ns, strict=True):
            place = placed.operation.signature, point_of(placed.operation, batch)
            found.setdefault(place, []).append((latency_ns, placed.rows))
    records = []
    for (signature, point), taken in found.items():
        samples_ns = np.sort(np.rint([latency_ns for latency_ns, _ in taken])).astype(np.int64)
        rows = "; ".join(sorted({rows for _, rows in taken}))
        records.append(Record(signature, environment.digest, point, samples_ns, {"rows": rows}))
    return tuple(records)


def _write(store: Store, records: tuple[Record, ...]) -> int:
    """Write the records that a store lacks, and return how many."""
    groups: dict[tuple[str, str], set[Record]] = {}
    for record in records:
        groups.setdefault(record.key, set()).add(record)
    num_added = 0
    for key, group in groups.items():
        lacking = group - set(store.read(*key)) if store.points(*key) else group
        store.write(*lacking)
        num_added += len(lacking)
    return num_added
