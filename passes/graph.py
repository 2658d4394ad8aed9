"""What the passes read: one captured FX graph, with where its symbols come from.

Contract: nothing here runs code, touches an engine or writes to the graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import sympy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Graph, Node

SIZE_SOURCE = re.compile(r"^(?P<tensor>.*)\.size\(\)\[(?P<axis>\d+)\]$")
"""The source of a tensor's size."""
_ITEM = re.compile(r"(?:\._modules|\._parameters|\._buffers)?\['([^']+)'\]")

Scalar: TypeAlias = "bool | int | float | str | None"


@dataclass(frozen=True, slots=True)
class SymbolSource:
    """Where a symbol of the graph was read, and the value it has in the traced model."""

    text: str
    """Dynamo's name of the source, such as `L['self']._modules['mlp'].size` or `L['x'].size()[0]`."""
    value: int
    """The integer that the traced model had there."""


@dataclass(frozen=True, slots=True)
class HeldParameter:
    """A parameter that a stateful module reads although the graph does not hand it over."""

    name: str
    """Its path below the traced module."""
    dtype: str
    """Element type, as `bfloat16`."""
    shape: tuple[int, ...]
    """Its sizes."""


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """One forward pass, captured with every size as a symbol.

    The graph is an ATen-level inference graph from AOTAutograd; each node's `meta["val"]` holds its fake value.
    """

    graph: Graph
    """The captured graph. Passes read it and leave it as it is."""
    sources: Mapping[sympy.Symbol, SymbolSource]
    """The source of each symbol."""
    equalities: tuple[tuple[sympy.Expr, sympy.Expr], ...]
    """Pairs that tracing proved equal: guards and replacements of the shape environment."""
    module_argument: str
    """The local variable that holds the traced module itself, mostly `self`."""
    request_dims: Mapping[str, tuple[str | None, ...]]
    """Names of the request dimensions of each forward argument, by position; None leaves a position to the default."""
    placeholders: Mapping[str, str]
    """The source text of each tensor placeholder, by node name."""
    guards: tuple[sympy.Expr, ...] = ()
    """What tracing took for true of the symbols: at sizes that break one, the module's code may go another way."""
    stateful: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """Attributes of the engine's stateful modules, by module path."""
    held: Mapping[str, tuple[HeldParameter, ...]] = field(default_factory=dict)
    """Parameters that stateful modules read beside their operands, by module path."""
    group_sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of ranks of each process group that PyTorch's collectives name."""
    configured: Mapping[str, sympy.Expr] = field(default_factory=dict)
    """Expression over fields of the model's configuration, by a source as `spell_source` writes it; where one is known."""
    config_values: Mapping[sympy.Symbol, int] = field(default_factory=dict)
    """Value of each field that `configured` speaks of."""


def spell_source(text: str, module_argument: str) -> str:
    """Return a source below the module as a dotted path: `layers.0.self_attn.q_size`, `norm.weight.size(0)`."""
    size = SIZE_SOURCE.match(text)
    body = size["tensor"] if size else text
    body = spell_items(body.removeprefix(f"L['{module_argument}']"))
    return f"{body}.size({size['axis']})" if size else body


def spell_items(text: str) -> str:
    """Return a source with its items as attributes: `layers.0.mlp` for `._modules['layers']._modules['0']._modules['mlp']`."""
    return _ITEM.sub(r".\1", text).lstrip(".")


def shape_of(node: Any) -> tuple[sympy.Expr, ...] | None:  # noqa: ANN401 - a node, whose meta torch leaves untyped
    """Return the symbolic shape of a node's tensor value, or None where the value is no tensor."""
    value = node.meta.get("val")
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return None
    return tuple(as_expr(size) for size in value.shape)


def dtype_of(node: Node) -> str:
    """Return the dtype of a node's tensor value, as `bfloat16`."""
    return str(node.meta["val"].dtype).removeprefix("torch.")


def number_of(argument: object) -> sympy.Expr | None:
    """Return the number that a node stands for, such as a size, as an expression; None for tensors and what is no node."""
    import torch

    value = getattr(argument, "meta", {}).get("val")
    is_number = isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
    return as_expr(value) if is_number else None


def as_expr(size: object) -> sympy.Expr:
    """Return a size (a number, or a symbolic number of torch) as a sympy expression."""
    if isinstance(size, (int, float)):
        return sympy.sympify(size)
    expr: sympy.Expr = size.node.expr  # type: ignore[attr-defined]
    return expr


def module_calls(node: Node, module_argument: str) -> list[tuple[str, str, str]]:
    """Return (call key, path, class name) of each module call around a node, outermost first; the first is the traced module.

    The key tells two calls of one module apart. A path starts below the traced module: `model.layers.0.mlp`.
    """
    calls = [("", "", "")]
    for key, (text, cls) in (node.meta.get("nn_module_stack") or {}).items():
        path = spell_source(text, module_argument)
        name = cls if isinstance(cls, str) else cls.__qualname__
        calls.append((key, path, name.rsplit(".", 1)[-1]))
    return calls


def parameter_path(source: str, captured: CapturedGraph) -> str | None:
    """Return the path of the parameter that a placeholder's source reads: `layers.0.proj.weight`; None for a buffer."""
    return spell_source(source, captured.module_argument) if "._parameters[" in source else None
