"""An operation of a captured graph: its nodes, what goes in and out of them, and how both are described."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from passes.borders import behind_views, is_activation
from passes.graph import CapturedGraph, HeldParameter, Scalar, as_expr, dtype_of, parameter_path, shape_of
from passes.operators import ALLOCATES, is_collective, is_tensor_code, operator_name, picks_written_operand, returned_values

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx import Node

    from passes.origins import Dim, Origins


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor at an operation's border."""

    dtype: str
    """Element type, as `bfloat16`."""
    shape: tuple[Dim, ...]
    """Dimensions with their origins."""
    is_parameter: bool
    """Whether it is a parameter or buffer of the model."""
    parameter: str | None = None
    """Path of the parameter below the traced module; None for a buffer and for any other tensor."""


@dataclass(frozen=True, slots=True)
class Operation:
    """A part of the captured graph that is measured and predicted as one."""

    module: str
    """Path of the module that runs it, below the traced module."""
    module_class: str
    """Class name of that module."""
    nodes: tuple[Node, ...]
    """Its nodes that compute, in graph order."""
    operands: tuple[Node, ...]
    """The nodes whose values come in, parameters included, in the order first used."""
    results: tuple[Node, ...]
    """Those of its nodes whose values are used outside."""
    inputs: tuple[TensorSpec, ...]
    """The operands' types."""
    outputs: tuple[TensorSpec, ...]
    """The results' types."""
    stateful: Mapping[str, Scalar] | None
    """The engine's attributes of a stateful operation; None for a stateless one."""
    held: tuple[TensorSpec, ...] = ()
    """Parameters that a stateful operation reads beside its operands."""
    group_sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of ranks of each process group that a collective names."""
    is_piece: bool = False
    """Whether it is a compiled piece, which goes by the path of the stateful module that it runs up to."""


def make_operation(
    call: tuple[str, str], nodes: tuple[Node, ...], captured: CapturedGraph, origins: Origins, *, is_piece: bool = False
) -> Operation:
    """Return the operation that runs some nodes of a captured graph.

    Args:
        call: Path and class name of the module that it is of.
        nodes: The nodes, in graph order.
        captured: The graph.
        origins: Where its symbols come from.
        is_piece: Whether it is a compiled piece, and no state of the module's own.
    """
    path, name = call
    is_of_module = not is_piece and not is_collective(nodes[0])
    operands, results = _border(nodes)
    # An in-place operator writes all its results, whether or not the model goes on to use them.
    unused = [
        value
        for node in nodes
        for place, value in enumerate(returned_values(node))
        if not any(user.args[1] == place for user in node.users)
    ]
    return Operation(
        path,
        name,
        nodes,
        operands,
        results,
        tuple(_border_spec(node, captured, origins) for node in operands),
        (*(_border_spec(node, captured, origins) for node in results), *(_spec_of(value, origins) for value in unused)),
        captured.stateful.get(path) if is_of_module else None,
        tuple(_held(parameter, origins) for parameter in captured.held.get(path, ())) if is_of_module else (),
        captured.group_sizes if is_collective(nodes[0]) else {},
        is_piece,
    )


def _border(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Return the nodes whose values come into some nodes, and those of them whose values are used outside."""
    members = set(nodes)
    operands = dict.fromkeys(
        source for node in nodes for source in node.all_input_nodes if source not in members and shape_of(source) is not None
    )
    results = (
        node
        for node in nodes
        if shape_of(node) is not None
        and operator_name(node) not in ALLOCATES
        and not picks_written_operand(node)
        and any(_takes_values(user) for user in node.users if user not in members)
    )
    return tuple(operands), tuple(results)


def _border_spec(node: Node, captured: CapturedGraph, origins: Origins) -> TensorSpec:
    """Return the type of an operand or a result, with the path of the parameter that it is."""
    shape = shape_of(node)
    assert shape is not None
    is_activation = _is_activation_operand(node, captured)
    parameter = None if is_activation else parameter_path(captured.placeholders[behind_views(node).name], captured)
    return TensorSpec(dtype_of(node), tuple(origins.dim(d) for d in shape), not is_activation, parameter)


def _spec_of(value: Any, origins: Origins) -> TensorSpec:  # noqa: ANN401 - a fake tensor
    dims = tuple(origins.dim(as_expr(size)) for size in value.shape)
    return TensorSpec(str(value.dtype).removeprefix("torch."), dims, is_parameter=False)


def _held(parameter: HeldParameter, origins: Origins) -> TensorSpec:
    dims = (origins.parameter_dim(f"{parameter.name}.size({axis})", size) for axis, size in enumerate(parameter.shape))
    return TensorSpec(parameter.dtype, tuple(dims), is_parameter=True, parameter=parameter.name)


def _is_activation_operand(node: Node, captured: CapturedGraph) -> bool:
    base = behind_views(node)
    return base.op != "placeholder" or is_activation(base, captured)


def _takes_values(node: Node) -> bool:
    """Tell nodes that read a tensor's values from those that ask for its size."""
    return node.op == "output" or is_tensor_code(node)
