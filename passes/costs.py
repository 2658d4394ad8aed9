"""Closed forms of what an operation costs: floating-point operations and the least memory traffic, as sympy expressions.

FLOPs follow PyTorch's own flop counter (`torch.utils.flop_counter`): matrix products count, element-wise work does not. Bytes are
the least any implementation moves: every operand read once, every result written once; a table looked up by index counts the rows
taken. The cost of a stateful operation depends on the engine's state and is given by the engine's adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import sympy

from passes.graph import shape_of
from passes.operations import Operation, TensorSpec
from passes.origins import Origins

if TYPE_CHECKING:
    from torch.fx import Node

_SIZES: Mapping[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "bfloat16": 2, "float16": 2, "int16": 2,
    "float32": 4, "int32": 4, "float64": 8, "int64": 8, "complex64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of an operation costs, over named symbols."""

    flops: sympy.Expr
    """Floating-point operations of the matrix products."""
    bytes: sympy.Expr
    """Least memory traffic, in bytes."""


def estimate_cost(operation: Operation, origins: Origins) -> Cost:
    """Return the closed-form cost of a stateless operation."""
    flops = sum((_flops(node, origins) for node in operation.nodes), sympy.Integer(0))
    rows = sum((_numel(t) for t in operation.inputs if t.dtype.startswith("int")), sympy.Integer(0))
    traffic = sum((_read_bytes(t, rows) for t in operation.inputs), sympy.Integer(0))
    written = sum((size_bytes(t) for t in operation.outputs), sympy.Integer(0))
    return Cost(sympy.expand(flops), sympy.expand(traffic + written))


def _read_bytes(tensor: TensorSpec, rows: sympy.Expr) -> sympy.Expr:
    """Return the traffic of one operand; of a parameter that an integer operand indexes, the `rows` taken."""
    if tensor.is_parameter and rows != 0:
        return sympy.expand(size_bytes(tensor) / tensor.shape[0].expr * rows)
    return size_bytes(tensor)


def _numel(tensor: TensorSpec) -> sympy.Expr:
    return prod((d.expr for d in tensor.shape), start=sympy.Integer(1))


def size_bytes(tensor: TensorSpec) -> sympy.Expr:
    """Return the size of a tensor in bytes."""
    return prod((d.expr for d in tensor.shape), start=sympy.Integer(_SIZES[tensor.dtype]))


def _flops(node: Node, origins: Origins) -> sympy.Expr:
    from torch.utils.flop_counter import flop_registry

    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return sympy.Integer(0)
    arguments = [_shape_or_value(a, origins) for a in node.args]
    return sympy.sympify(formula(*arguments, **node.kwargs, out_val=None))


def _shape_or_value(argument: object, origins: Origins) -> object:
    shape = shape_of(argument) if hasattr(argument, "meta") else None
    return tuple(map(origins.rename, shape)) if shape is not None else argument
