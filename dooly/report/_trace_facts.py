"""What tables and pages both tell of a traced model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dooly.tracing import TracedDim, TracedModel

_LAYER = re.compile(r"^(?P<layer>.*?(?:^|\.)\d+)(?:\.(?P<name>.*))?$")


def layer_of(module: str, traced: TracedModel) -> tuple[str, str]:
    """Return the repeated layer that a module lies in, empty outside of all, and the module's name within it."""
    match = _LAYER.match(module)
    if match is None or (match["name"] is None and not _has_inside(module, traced)):
        return "", module or traced.model
    return match["layer"], match["name"] or "(own code)"


def _has_inside(module: str, traced: TracedModel) -> bool:
    return any(path.startswith(f"{module}.") for op in traced.operations for path, _ in op.placements)


def layer_counts(traced: TracedModel, stage: str) -> dict[str, int]:
    """Return how many layers each traced layer of a stage stands for, itself included."""
    placements = [placement for op in traced.operations if op.stage == stage for placement in op.placements]
    return {layer: count for module, count in placements if (layer := layer_of(module, traced)[0])}


def config_values(traced: TracedModel) -> dict[str, int]:
    """Return the value of each configured dimension that has a name, in the order they first appear."""
    tensors = [tensor for op in traced.operations for tensor in (*op.inputs, *op.outputs)]
    dims = [dim for tensor in tensors for dim in tensor.shape]
    return {dim.expr: dim.value for dim in dims if dim.value is not None and dim.expr != str(dim.value)}


def spell_dim(dim: TracedDim) -> str:
    """Return a dimension as a factor of a shape: sums in parentheses."""
    return f"({dim.expr})" if " " in dim.expr else dim.expr
