"""Split a captured graph into operations: what one leaf-module call, or one piece of a module's own code, executes.

Views at an operation's border cost nothing and belong to no operation: functionalisation regenerates them wherever a value is
used, so they say nothing about the module that they appear in. A group of views alone is no operation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import networkx as nx

from passes._errors import PassError
from passes.graph import (
    CapturedGraph,
    HeldParameter,
    Scalar,
    as_expr,
    dtype_of,
    module_calls,
    number_of,
    parameter_path,
    shape_of,
)
from passes.operators import (
    ALLOCATES,
    WAIT,
    is_collective,
    is_functionalized,
    is_tensor_code,
    is_view,
    operator_name,
    picks_written_operand,
    returned_values,
    source_of,
    writes_back,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.fx import Node

    from passes.origins import Dim, Origins


_CUSTOM = "make that code a torch.library.custom_op"
_SHOWN = {"higher_order.flex_attention": "write it as torch.nn.functional.scaled_dot_product_attention with a mask"}
"""What to write in place of operators that run functions of the caller's."""


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


def split_operations(captured: CapturedGraph, origins: Origins) -> tuple[Operation, ...]:
    """Return the operations of a captured graph, in the order they run.

    Raises:
        PassError: An operator runs a graph or kernel that the captured graph does not show, or a size depends on the data.
    """
    _refuse_unreadable(captured, origins)
    found = [
        _operation(path, name, nodes, captured, origins)
        for path, name, group in _groups(captured)
        if (nodes := _without_border_views(_with_inner_views(group, captured), captured))
    ]
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    return tuple(sorted(found, key=lambda op: order[op.nodes[0]]))


def _refuse_unreadable(captured: CapturedGraph, origins: Origins) -> None:
    from torch._ops import HigherOrderOperator

    for node in (n for n in captured.graph.nodes if n.op == "call_function"):
        module = module_calls(node, captured.module_argument)[-1][1] or "the traced module"
        place = f"operations: {operator_name(node)} in {module}"
        if isinstance(node.target, HigherOrderOperator) and not is_functionalized(node):
            msg = f"{place}: runs code that the captured graph does not show; {_SHOWN.get(operator_name(node), _CUSTOM)}"
            raise PassError(msg)
        number = number_of(node)
        sizes = [number] if number is not None else shape_of(node) or ()
        if any(size.free_symbols - set(origins.names) for size in sizes):
            msg = f"{place}: its result's size or value depends on the data; make the code around it a torch.library.custom_op"
            raise PassError(msg)


def _takes_values(node: Node) -> bool:
    """Tell nodes that read a tensor's values from those that ask for its size."""
    return node.op == "output" or is_tensor_code(node)


def _groups(captured: CapturedGraph) -> list[tuple[str, str, list[Node]]]:
    """Return (module path, class, nodes): a leaf call as one group, a container's own code by connected piece.

    A collective is a group of its own, with the wait for its result, and also cuts the call around it into pieces.
    """
    calls: dict[tuple[str, str, str], list[Node]] = {}
    collectives: dict[Node, tuple[str, str, list[Node]]] = {}
    split: set[tuple[str, str, str]] = set()
    for node in captured.graph.nodes:
        if is_tensor_code(node) and not writes_back(node):
            owner = _owner(source_of(node), captured)
            if is_collective(node):
                collectives[node] = (owner[1], operator_name(node).rpartition(".")[2], [node])
                split.add(owner)
            elif operator_name(node) == WAIT and (started := _behind_views(node.args[0])) in collectives:
                collectives[started][2].append(node)
            else:
                calls.setdefault(owner, []).append(node)
    containers = {".".join(path.split(".")[:depth]) for _, path, _ in calls for depth in range(path.count(".") + 1) if path}
    groups = list(collectives.values())
    for call, nodes in calls.items():
        _, path, name = call
        if (path in containers and path not in captured.stateful) or call in split:
            groups += [(path, name, piece) for piece in _connected(nodes, captured)]
        else:
            groups.append((path, name, nodes))
    return groups


def _owner(node: Node, captured: CapturedGraph) -> tuple[str, str, str]:
    """Return the call that a node belongs to: the outermost stateful module around it, else its innermost module."""
    calls = module_calls(node, captured.module_argument)
    return next((call for call in calls if call[1] in captured.stateful), calls[-1])


def _connected(nodes: list[Node], captured: CapturedGraph) -> list[list[Node]]:
    """Return a container's computing nodes by connected piece; views connect them, but sharing an outer value does not.

    A piece runs as one: what needs the result of a leaf that needs the piece is another piece.
    """
    computing = [n for n in nodes if not is_view(n)]
    turns = _turns(frozenset(computing), captured)
    pieces = nx.Graph()
    pieces.add_nodes_from(computing)
    for node in computing:
        sources = map(_behind_views, node.all_input_nodes)
        pieces.add_edges_from((node, source) for source in sources if source in pieces and turns[source] == turns[node])
    return [sorted(piece) for piece in nx.connected_components(pieces)]


def _turns(members: frozenset[Node], captured: CapturedGraph) -> dict[Node, int]:
    """Return how often the way to a node left `members` and came back; only for nodes that depend on one of them."""
    turns: dict[Node, int] = {}
    for node in captured.graph.nodes:
        behind = [(source, turns[source]) for source in map(_behind_views, node.all_input_nodes) if source in turns]
        if node in members:
            turns[node] = max((turn + (source not in members) for source, turn in behind), default=0)
        elif behind:
            turns[node] = max(turn for _, turn in behind)
    return turns


def _views_behind(node: Node) -> Iterator[Node]:
    """Yield the views that a value passed through last, latest first."""
    while node.op == "call_function" and is_view(node):
        yield node
        node = node.args[0]  # type: ignore[assignment]


def _behind_views(node: Node) -> Node:
    *_, last = (None, *_views_behind(node))
    return node if last is None else last.args[0]  # type: ignore[return-value]


def _with_inner_views(group: list[Node], captured: CapturedGraph) -> list[Node]:
    """Return a group with the views that lie between two of its nodes, in graph order: they say which result goes where.

    Views of parameters come along as well: a transposed weight is part of the operation.
    """
    members = set(group)
    for node in group:
        for source in node.all_input_nodes:
            passed = list(_views_behind(source))
            if passed and (passed[-1].args[0] in members or not _is_activation(passed[-1].args[0], captured)):  # type: ignore[arg-type]
                members.update(passed)
    return sorted(members)


def _without_border_views(group: list[Node], captured: CapturedGraph) -> tuple[Node, ...]:
    """Return a group's nodes less the views that only feed the group from outside or only hand its results on."""
    members = set(group)
    for node in group:
        if is_view(node) and node.args[0] not in members and _is_activation(node.args[0], captured):  # type: ignore[arg-type]
            members.discard(node)
    for node in reversed(group):
        if node in members and is_view(node) and not any(user in members for user in node.users):
            members.discard(node)
    kept = [n for n in group if n in members]
    return tuple(kept) if any(not is_view(n) and operator_name(n) not in ALLOCATES for n in kept) else ()


def _is_activation(node: Node, captured: CapturedGraph) -> bool:
    text = captured.placeholders.get(node.name)
    return text is None or not text.startswith(f"L['{captured.module_argument}']")


def _operation(path: str, name: str, nodes: tuple[Node, ...], captured: CapturedGraph, origins: Origins) -> Operation:
    members = set(nodes)
    operands = dict.fromkeys(
        source for node in nodes for source in node.all_input_nodes if source not in members and shape_of(source) is not None
    )
    results = [
        node
        for node in nodes
        if shape_of(node) is not None
        and operator_name(node) not in ALLOCATES
        and not picks_written_operand(node)
        and any(_takes_values(user) for user in node.users if user not in members)
    ]

    # An in-place operator writes all its results, whether or not the model goes on to use them.
    unused = [
        value
        for node in nodes
        for place, value in enumerate(returned_values(node))
        if not any(user.args[1] == place for user in node.users)
    ]

    def spec(node: Node) -> TensorSpec:
        shape = shape_of(node)
        assert shape is not None
        is_activation = _is_activation_operand(node, captured)
        parameter = None if is_activation else parameter_path(captured.placeholders[_behind_views(node).name], captured)
        return TensorSpec(dtype_of(node), tuple(origins.dim(d) for d in shape), not is_activation, parameter)

    return Operation(
        path,
        name,
        nodes,
        tuple(operands),
        tuple(results),
        tuple(map(spec, operands)),
        (*map(spec, results), *(_spec_of(value, origins) for value in unused)),
        None if is_collective(nodes[0]) else captured.stateful.get(path),
        () if is_collective(nodes[0]) else tuple(_held(parameter, origins) for parameter in captured.held.get(path, ())),
        captured.group_sizes if is_collective(nodes[0]) else {},
    )


def _spec_of(value: Any, origins: Origins) -> TensorSpec:  # noqa: ANN401 - a fake tensor
    dims = tuple(origins.dim(as_expr(size)) for size in value.shape)
    return TensorSpec(str(value.dtype).removeprefix("torch."), dims, is_parameter=False)


def _held(parameter: HeldParameter, origins: Origins) -> TensorSpec:
    dims = (origins.parameter_dim(f"{parameter.name}.size({axis})", size) for axis, size in enumerate(parameter.shape))
    return TensorSpec(parameter.dtype, tuple(dims), is_parameter=True, parameter=parameter.name)


def _is_activation_operand(node: Node, captured: CapturedGraph) -> bool:
    base = _behind_views(node)
    return base.op != "placeholder" or _is_activation(base, captured)
