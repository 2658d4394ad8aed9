"""What the page of a store shows: collected from its traces, its records and the fits to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dbstore import Environment, RecordNotFoundError
from dooly.catalog import NO_MODEL
from dooly.engines import ServingConfig
from dooly.errors import DoolyError
from dooly.predict import fit_latency_model
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dbstore import Record, Store
    from dooly.predict import FittedOperation
    from dooly.tracing import TracedOperation


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one operation of a model."""

    model: str
    """The model, and the device where the store has several."""
    name: str
    """The operation, as breakdowns call it."""
    family: str
    """What it is, as `Linear`."""
    source: str
    """What it goes by: `measured`, `family` or `estimated`; `-` where nothing tells."""
    error: float | None
    """Median relative error of held-out points."""
    error_p90: float | None
    """Relative error that nine of ten measurements keep within, where it is known."""
    coverage: float | None
    """Share of held-out points' measurements in 90 % intervals, where it is known."""
    num_points: int
    """Points that have records."""
    num_infeasible: int
    """Those that could not be measured."""
    num_spoiled: int
    """Records that were disturbed."""
    reach: str
    """The largest point."""
    measuring_s: float
    """Seconds spent on it; 0 for all but the first model that has it."""


@dataclass(slots=True)
class StoreFacts:
    """What was collected."""

    known: list[Known] = field(default_factory=list)
    """Operations, by model."""
    drift: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    """By device, when a measurement began and how much slower than at best fixed work was after it."""
    passes: dict[int, list[float]] = field(default_factory=dict)
    """By pass, how much slower its medians are than those of the fastest pass at the same point."""
    notes: list[str] = field(default_factory=list)
    """What could not be told, and why."""


def collect(store: Store) -> StoreFacts:
    """Return what a store knows, and how well."""
    facts, read = StoreFacts(), set()
    digests = store.documents("environments")
    environments = {digest: Environment.from_json(store.read_document("environments", digest)) for digest in digests}
    for name in store.documents("traces"):
        document: Any = store.read_document("traces", name)
        if document["config"] == NO_MODEL:
            continue
        environment = environments[document["environment"]]
        traced = TracedModel.from_json(document["traced"])
        shown = traced.model if len(environments) == 1 else f"{traced.model}, {environment.device} {environment.digest[:4]}"
        fitted = _fitted(store, traced, environment, facts.notes)
        for operation in {operation.signature: operation for operation in traced.operations}.values():
            records = _records(store, operation, environment)
            is_new = (operation.signature, environment.digest) not in read
            read.add((operation.signature, environment.digest))
            if is_new:
                _add_steadiness(facts, environment.device, records)
            if records or operation.signature in fitted:
                spent_s = sum(record.attributes.get("wall_s", 0.0) for record in records) if is_new else 0.0
                facts.known.append(_known(shown, operation, fitted.get(operation.signature), records, spent_s))
    for points in facts.drift.values():
        points.sort()
    return facts


def _fitted(store: Store, traced: TracedModel, environment: Environment, notes: list[str]) -> dict[str, FittedOperation]:
    """Return what predicts each operation, by signature; nothing where the model cannot be priced, and note why."""
    serving = ServingConfig(dtype=environment.dtype)
    try:
        latency = fit_latency_model(store, traced, environment, serving)
    except DoolyError as error:
        notes.append(f"no errors of {traced.model}: {error}")
        return {}
    return {fitted.operation.signature: fitted for fitted in latency.operations}


def _records(store: Store, operation: TracedOperation, environment: Environment) -> tuple[Record, ...]:
    try:
        return store.read(operation.signature, environment.digest)
    except RecordNotFoundError:
        return ()


def _known(
    model: str, operation: TracedOperation, fitted: FittedOperation | None, records: Sequence[Record], spent_s: float
) -> Known:
    regressor: Any = None if fitted is None else getattr(fitted.latency, "regressor", None)
    own = records and operation.stage == "engine"
    return Known(
        model,
        operation.name if fitted is None else fitted.name,
        operation.module_class or operation.name,
        "measured" if own else ("-" if fitted is None else fitted.latency.source),
        None if fitted is None else fitted.relative_error,
        getattr(regressor, "relative_error_p90", None),
        getattr(regressor, "coverage", None),
        len({record.point for record in records}),
        sum(record.infeasible is not None for record in records),
        sum(bool(record.attributes.get("spoiled")) for record in records),
        _reach(records),
        spent_s,
    )


def _reach(records: Sequence[Record]) -> str:
    """Return the largest sizes that were measured, as text."""
    points = [record.point for record in records if record.infeasible is None]
    batches = [point["batch"] for point in points if "batch" in point]
    if batches:
        tokens = max(sum(new for new, _ in batch) for batch in batches)
        context = max(max(map(sum, batch)) for batch in batches)
        return f"{tokens:,} tokens × {max(map(len, batches)):,} requests × {context:,}"  # noqa: RUF001 - as below
    sizes = [max(values) for values in zip(*(point.values() for point in points), strict=False)]
    return " × ".join(f"{size:,}" for size in sizes)  # noqa: RUF001 - as sizes are written


def _add_steadiness(facts: StoreFacts, device: str, records: Sequence[Record]) -> None:
    """Add what records say of drift, and how far passes lie apart."""
    passes: dict[Any, list[tuple[int, float]]] = {}
    for record in records:
        if record.infeasible is not None:
            continue
        if "measured_s" in record.attributes and "drift" in record.attributes:
            moment = datetime.fromtimestamp(record.attributes["measured_s"], UTC).isoformat(sep=" ", timespec="milliseconds")
            facts.drift.setdefault(device, []).append((moment.partition("+")[0], record.attributes["drift"]))
        if "pass" in record.attributes:
            passes.setdefault(record.point, []).append((record.attributes["pass"], record.median_ns))
    for number, slower in _slower(passes):
        facts.passes.setdefault(number, []).append(slower)


def _slower(passes: dict[Any, list[tuple[int, float]]]) -> Iterator[tuple[int, float]]:
    for found in passes.values():
        fastest = min(ns for _, ns in found)
        if len(found) > 1 and fastest > 0:
            yield from ((number, ns / fastest - 1) for number, ns in found)
