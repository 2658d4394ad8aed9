"""What an engine takes around operations, seen by a sampler: beside what the operations are taken to take.

A whole layer, or module, takes little more than its operations do, and what a step takes beside them all is a small part of it.
By the closed forms of the operations both are nearly flat, so a few points tell them; by themselves each would have to be learnt
over all batches anew. And what counts of either is how far it throws off the whole that it is part of.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dooly.catalog import LAYER, MODULE, STEP
from dooly.tracing import layer_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    from dooly.predict import Sweep
    from dooly.tracing import TracedOperation

AnyKey = TypeVar("AnyKey", bound="Hashable")


def around_parts(
    operations: Mapping[AnyKey, TracedOperation], places: Sequence[Mapping[AnyKey, Any]], sweeps: Mapping[AnyKey, Sweep]
) -> dict[AnyKey, Sweep]:
    """Return sweeps, those of layers, modules and steps over the closed forms of the operations that they run.

    Args:
        operations: The operations, by key.
        places: The point of each operation at each place, by key.
        sweeps: Their points by themselves, in the order in which they first come in `places`.
    """
    parts = {key: operation for key, operation in operations.items() if operation.stage != "engine"}
    rows = {key: rows_of(key, places) for key in operations}
    found = dict(sweeps)
    for key in operations.keys() - parts.keys():
        whole = operations[key]
        runs = {part: count for part, operation in parts.items() if (count := _runs(operation, whole))}
        where = {place[key]: place for place in reversed(places)}
        inner_ns = sum(
            (
                count * sweeps[part].roofline_ns[[rows[part][where[point][part]] for point in rows[key]]]
                for part, count in runs.items()
            ),
            start=np.zeros(len(rows[key])),
        )
        if runs:
            found[key] = replace(found[key], roofline_ns=inner_ns, beside_ns=inner_ns if whole.name == STEP else None)
    return found


def is_whole(operation: TracedOperation) -> bool:
    """Tell whether an operation is a whole layer or module, whose time is that of operations within it."""
    return operation.stage == "engine" and operation.name in {LAYER, MODULE}


def _runs(part: TracedOperation, whole: TracedOperation) -> float:
    """Return how often one run of a layer, a module or a step runs an operation."""
    if whole.name != LAYER:
        return part.count
    return sum(count for module, count in part.placements if layer_of(module) == whole.module) / whole.count


def rows_of(key: AnyKey, places: Sequence[Mapping[AnyKey, Hashable]]) -> dict[Any, int]:
    """Return the points of an operation in the order in which they first come in places, each with its number."""
    return {point: row for row, point in enumerate(dict.fromkeys(place[key] for place in places if key in place))}
