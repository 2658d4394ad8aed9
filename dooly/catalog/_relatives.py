"""What a store knows of operations that are no model's own but of its families: they tell of those that were measured little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dooly.catalog._records import latencies_of
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbstore import Store
    from dooly.tracing import TracedOperation

MOST_OTHERS = 16
"""Operations of a family beside a model's own: as many tell about as much as all, and each costs time to learn from."""


@dataclass(frozen=True, slots=True)
class Known:
    """An operation that is not to be measured, but whose records tell of its family."""

    operation: TracedOperation
    """The operation."""
    latency_ns: Mapping[Any, float]
    """What it took, in nanoseconds, by point."""


def relatives(operations: Sequence[TracedOperation], store: Store, environment: str) -> list[Known]:
    """Return measured operations of other models that are of the families of these, of each family those measured most."""
    families = {operation.family for operation in operations if operation.family}
    own = {operation.signature for operation in operations}
    found: dict[str, TracedOperation] = {}
    for name in store.documents("traces"):
        if name.endswith(environment):
            document: Any = store.read_document("traces", name)
            for operation in TracedModel.from_json(document["traced"]).operations:
                if operation.family in families and operation.signature not in own:
                    found.setdefault(operation.signature, operation)
    known = [Known(operation, latencies_of(store, signature, environment)) for signature, operation in found.items()]
    chosen: list[Known] = []
    for family in sorted(families):
        members = [k for k in known if k.operation.family == family and k.latency_ns]
        chosen += sorted(members, key=lambda k: -len(k.latency_ns))[:MOST_OTHERS]
    return chosen
