"""What tables and pages both tell of a traced model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.tracing import layer_of

if TYPE_CHECKING:
    from dooly.tracing import TracedDim, TracedModel


def place_of(module: str, traced: TracedModel) -> tuple[str, str]:
    """Return the repeated layer that a module lies in or is, empty outside of all, and what it is called within it."""
    layer = layer_of(f"{module}." if _has_inside(module, traced) else module)
    if layer is None:
        return "", module or traced.model
    return layer, module.removeprefix(layer)[1:] or "(own code)"


def _has_inside(module: str, traced: TracedModel) -> bool:
    return any(path.startswith(f"{module}.") for op in traced.operations for path, _ in op.placements)


def config_values(traced: TracedModel) -> dict[str, int]:
    """Return the value of each configured dimension that has a name, in the order they first appear."""
    tensors = [tensor for op in traced.operations for tensor in (*op.inputs, *op.outputs)]
    dims = [dim for tensor in tensors for dim in tensor.shape]
    return {dim.expr: dim.value for dim in dims if dim.value is not None and dim.expr != str(dim.value)}


def spell_dim(dim: TracedDim) -> str:
    """Return a dimension as a factor of a shape: sums in parentheses."""
    return f"({dim.expr})" if " " in dim.expr else dim.expr
