"""Layers, modules and steps as a sampler sees them: over the closed forms of the operations that they run.

By itself a whole layer would have to be learnt over all batches anew, though its operations tell most of its time; and what a
step takes beyond its operations would be learnt as closely as they are, though it is a small part of the step. Over the closed
forms of the operations the one is nearer to level, and of the other what counts is how far it throws off the step.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import LAYER, MODULE, STEP, key_of
from dooly.predict import work_at
from dooly.tracing import layer_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbstore import JsonObject
    from dooly.catalog import Key
    from dooly.predict import Rates, Sweep
    from dooly.tracing import TracedOperation


def over_parts(
    operations: Mapping[Key, TracedOperation],
    parts: Sequence[TracedOperation],
    places: Sequence[Mapping[Key, JsonObject]],
    sweeps: Mapping[Key, Sweep],
    rates: Rates,
) -> dict[Key, Sweep]:
    """Return sweeps, those of layers, modules and steps over the closed forms of the parts that they run.

    Where another worker measures some of its parts, a whole stands by itself: what rates a device reaches is not known here.

    Args:
        operations: The operations that are swept, by key.
        parts: All that layers, modules and steps are made of; of a key there may be several, at modules of their own.
        places: The point of each operation at each place, by key.
        sweeps: The sweeps by themselves, their points in the order in which they first come in `places`.
        rates: What the device reaches.
    """
    found = dict(sweeps)
    for key, whole in operations.items():
        if whole.stage != "engine":
            continue
        runs: Counter[Key] = Counter()
        for part in parts:
            if part.stage != "engine":
                runs[key_of(part)] += _runs(part, whole)
        runs = +runs
        if not runs or not runs.keys() <= operations.keys():
            continue
        where: dict[JsonObject, Mapping[Key, JsonObject]] = {}
        for place in places:
            where.setdefault(place[key], place)
        forms = [
            count * rates.roofline_ns(*work_at(operations[part], [place[part] for place in where.values()]))
            for part, count in runs.items()
        ]
        found[key] = replace(found[key], roofline_ns=np.sum(forms, axis=0), is_rest=whole.name == STEP)
    return found


def is_whole(operation: TracedOperation) -> bool:
    """Tell whether an operation is a whole layer or module, whose time is that of operations within it."""
    return operation.stage == "engine" and operation.name in {LAYER, MODULE}


def _runs(part: TracedOperation, whole: TracedOperation) -> int:
    """Return how often one run of a layer, a module or a step runs an operation."""
    if whole.name != LAYER:
        return part.count
    return sum(count for module, count in part.placements if layer_of(module) == whole.module) // whole.count
