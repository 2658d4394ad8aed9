"""What a store knows of operations that are no model's own but of its families: they tell of those that were measured little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.catalog._records import latencies_of, record_counts
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbstore import Store
    from dooly.tracing import TracedOperation

MOST_OTHERS = 16
"""Operations of a family beside a model's own: as many tell about as much as all, and each costs time to learn from."""
MOST_POINTS = 640
"""Points of them all, but for those of the first: what learning takes grows with the cube."""


@dataclass(frozen=True, slots=True)
class Known:
    """An operation that is not to be measured, but whose records tell of its family."""

    operation: TracedOperation
    """The operation."""
    latency_ns: Mapping[Any, float]
    """What it took, in nanoseconds, by point."""


def related_operations(operations: Sequence[TracedOperation], store: Store, environment: str) -> list[TracedOperation]:
    """Return the operations of other models in a store that are of the families of these; reads no records."""
    families = {operation.family for operation in operations if operation.family}
    own = {operation.signature for operation in operations}
    found: dict[str, TracedOperation] = {}
    for name in sorted(store.documents("traces")) if families else ():
        if name.endswith(environment):
            document: Any = store.read_document("traces", name)
            for operation in TracedModel.from_json(document["traced"]).operations:
                if operation.family in families and operation.signature not in own:
                    found.setdefault(operation.signature, operation)
    return list(found.values())


def measured_most(operations: Sequence[TracedOperation], store: Store, environment: str) -> list[Known]:
    """Return of each family of operations those that were measured at most points, with what they took; not too many.

    A point that something disturbed each time tells nothing until it has been tried often enough, as `record_counts` has it.
    """
    known = []
    for operation in operations:
        counted = record_counts(store, operation.signature, environment)
        took = latencies_of(store, operation.signature, environment)
        known.append(Known(operation, {point: ns for point, ns in took.items() if counted[point]}))
    chosen: list[Known] = []
    for family in sorted({operation.family for operation in operations if operation.family}):
        members = [k for k in known if k.operation.family == family and k.latency_ns]
        members = sorted(members, key=lambda k: -len(k.latency_ns))[:MOST_OTHERS]
        counts = np.cumsum([len(k.latency_ns) for k in members])
        chosen += members[: max(1, int(np.searchsorted(counts, MOST_POINTS, side="right")))]
    return chosen
