"""Which repeated layer a module lies in, and how many layers like it a step runs.

`count` means one thing wherever it stands, at operations, their placements and layers: how often one step of the whole model runs
it. Within one layer an operation runs its placement's count over the layer's.
"""

from __future__ import annotations

import re
from math import gcd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dooly.tracing._model import TracedOperation

_LAYER = re.compile(r"^((?:.*?\.)?\d+)\.")


def layer_of(module: str) -> str | None:
    """Return the path of the outermost numbered layer that a module lies in, or None outside of all layers."""
    match = _LAYER.match(module)
    return match[1] if match else None


def layer_counts(operations: Iterable[TracedOperation]) -> dict[str, int]:
    """Return how often one step runs each traced layer and those like it, by the layer's path.

    Modules in lists of a layer's own run more often than the layer: its count is what all of theirs are multiples of.
    """
    counts: dict[str, int] = {}
    for module, count in (placement for operation in operations for placement in operation.placements):
        if (layer := layer_of(module)) is not None:
            counts[layer] = gcd(counts.get(layer, 0), count)
    return counts


def generic_path(module: str) -> str:
    """Return a module's path with every number in it taken out, as all layers share it."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
