"""Split a captured graph into operations: what one leaf-module call, or one piece of a module's own code, executes.

Views at an operation's border cost nothing and belong to no operation: functionalisation regenerates them wherever a value is
used, so they say nothing about the module that they appear in. A group of views alone is no operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx

from passes._errors import PassError
from passes.borders import behind_views, with_inner_views, without_border_views
from passes.graph import CapturedGraph, module_calls, number_of, shape_of
from passes.operation import Operation, make_operation
from passes.operators import (
    WAIT,
    is_collective,
    is_functionalized,
    is_tensor_code,
    is_view,
    operator_name,
    source_of,
    writes_back,
)

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.origins import Origins


_CUSTOM = "make that code a torch.library.custom_op"
_SHOWN = {"higher_order.flex_attention": "write it as torch.nn.functional.scaled_dot_product_attention with a mask"}
"""What to write in place of operators that run functions of the caller's."""


def split_operations(captured: CapturedGraph, origins: Origins) -> tuple[Operation, ...]:
    """Return the operations of a captured graph, in the order they run.

    Raises:
        PassError: An operator runs a graph or kernel that the captured graph does not show, or a size depends on the data.
    """
    refuse_unreadable(captured, origins)
    found = [
        make_operation((path, name), nodes, captured, origins)
        for path, name, group in _groups(captured)
        if (nodes := without_border_views(with_inner_views(group, captured), captured))
    ]
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    return tuple(sorted(found, key=lambda op: order[op.nodes[0]]))


def refuse_unreadable(captured: CapturedGraph, origins: Origins) -> None:
    """Refuse a graph in which something runs that it does not show.

    Raises:
        PassError: An operator runs a graph or kernel of its own, or a size depends on the data.
    """
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


def _groups(captured: CapturedGraph) -> list[tuple[str, str, list[Node]]]:
    """Return (module path, class, nodes): a leaf call as one group, a container's own code by connected piece.

    A collective is a group of its own, with the wait for its result, and also cuts the call around it into pieces.
    """
    calls: dict[tuple[str, str, str], list[Node]] = {}
    collectives: dict[Node, tuple[str, str, list[Node]]] = {}
    split: set[tuple[str, str, str]] = set()
    for node in captured.graph.nodes:
        if is_tensor_code(node) and not writes_back(node):
            owner = owner_of(source_of(node), captured)
            if is_collective(node):
                collectives[node] = (owner[1], operator_name(node).rpartition(".")[2], [node])
                split.add(owner)
            elif operator_name(node) == WAIT and (started := behind_views(node.args[0])) in collectives:
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


def owner_of(node: Node, captured: CapturedGraph) -> tuple[str, str, str]:
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
        sources = map(behind_views, node.all_input_nodes)
        pieces.add_edges_from((node, source) for source in sources if source in pieces and turns[source] == turns[node])
    return [sorted(piece) for piece in nx.connected_components(pieces)]


def _turns(members: frozenset[Node], captured: CapturedGraph) -> dict[Node, int]:
    """Return how often the way to a node left `members` and came back; only for nodes that depend on one of them."""
    turns: dict[Node, int] = {}
    for node in captured.graph.nodes:
        behind = [(source, turns[source]) for source in map(behind_views, node.all_input_nodes) if source in turns]
        if node in members:
            turns[node] = max((turn + (source not in members) for source, turn in behind), default=0)
        elif behind:
            turns[node] = max(turn for _, turn in behind)
    return turns
