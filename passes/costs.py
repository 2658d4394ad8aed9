"""Closed forms of what an operation costs: floating-point operations and the least memory traffic, as sympy expressions.

FLOPs count as PyTorch's own flop counter does (`torch.utils.flop_counter`; its formulas refuse symbolic sizes): matrix products,
attention and convolutions count, element-wise work and transforms do not, and causal masking saves nothing. Beyond its registry,
products with vectors, grouped and integer products, recurrent layers and the CPU's attention count alike; an operator that
multiplies and has no closed form is refused by its name. Bytes are the least that any implementation moves: every operand read
once, every result written once; a table looked up by index counts the rows taken, unless a product reads it too. A collective has
no FLOPs, and its bytes are its payload: the whole tensor that the ranks reduce, gather or pass on. The cost of a stateful
operation depends on the engine's state and is given by the engine's adapter.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import sympy

from passes._errors import PassError
from passes.operators import is_collective, is_view, operator_name
from passes.products import product_flops

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.operation import Operation, TensorSpec
    from passes.origins import Origins

_INDEX_TYPES = frozenset({"int32", "int64"})


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of an operation costs, over named symbols."""

    flops: sympy.Expr
    """Floating-point operations of the matrix products, attention and convolutions."""
    bytes: sympy.Expr
    """Least memory traffic, in bytes."""


def estimate_cost(operation: Operation, origins: Origins) -> Cost:
    """Return the closed-form cost of what the graph shows of an operation.

    Raises:
        PassError: An operator multiplies matrices, and how many FLOPs that takes is not known.
    """
    if is_collective(operation.nodes[0]):
        return Cost(sympy.Integer(0), _payload(operation))
    flops = sum((_flops(node, operation, origins) for node in operation.nodes), sympy.Integer(0))
    indices = [t for t in operation.inputs if t.dtype in _INDEX_TYPES and not t.is_parameter]
    rows = sum(map(_numel, indices), sympy.Integer(0))
    traffic = sum(
        (
            _rows_bytes(t, rows) if t.is_parameter and not _is_multiplied(node, operation, origins) else size_bytes(t)
            for node, t in zip(operation.operands, operation.inputs, strict=True)
        ),
        sympy.Integer(0),
    )
    written = sum((size_bytes(t) for t in operation.outputs), sympy.Integer(0))
    return Cost(sympy.expand(flops), sympy.expand(traffic + written))


def _payload(operation: Operation) -> sympy.Expr:
    """Return the size of the whole tensor that a collective works on: a gather's result, any other's operand."""
    whole = operation.outputs if "gather" in operator_name(operation.nodes[0]) else operation.inputs
    return sum((size_bytes(t) for t in whole), sympy.Integer(0))


def _flops(node: Node, operation: Operation, origins: Origins) -> sympy.Expr:
    flops = product_flops(node, origins)
    if flops is not None:
        return flops
    if operation.stateful is not None:  # the engine's adapter counts it
        return sympy.Integer(0)
    place = operation.module or operation.module_class or "the traced module"
    raise PassError(
        f"costs: {operator_name(node)} in {place} multiplies matrices, and its FLOPs are not known; "
        "write it as torch.matmul, or give the engine's operator its form in passes/products.py"
    )


def _is_multiplied(parameter: Node, operation: Operation, origins: Origins) -> bool:
    """Tell a parameter that a product reads, itself or as a view: all of it, whatever else takes rows of it."""
    behind = {parameter}
    for node in (n for n in operation.nodes if not behind.isdisjoint(n.all_input_nodes)):
        if is_view(node):
            behind.add(node)
        elif product_flops(node, origins) != 0:
            return True
    return False


def _rows_bytes(tensor: TensorSpec, rows: sympy.Expr) -> sympy.Expr:
    """Return the traffic of the `rows` taken of a table; of all of it where no operand of the operation names any."""
    if tensor.shape and rows != 0:
        return sympy.expand(size_bytes(tensor) / tensor.shape[0].expr * rows)
    return size_bytes(tensor)


def _numel(tensor: TensorSpec) -> sympy.Expr:
    return prod((d.expr for d in tensor.shape), start=sympy.Integer(1))


def size_bytes(tensor: TensorSpec) -> sympy.Expr:
    """Return the size of a tensor in bytes."""
    import torch

    return sympy.expand(_numel(tensor) * getattr(torch, tensor.dtype).itemsize)
