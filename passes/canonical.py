"""Bring an operation into a canonical graph: what it computes, free of names, layer numbers, addresses and node order.

Nodes carry operator, element type and dimensions; edges carry operand position. Configured dimensions enter by value. A request
dimension is a node of its own without a name, tied to the tensors whose shape it enters, so that `num_tokens` in one model and
`num_reqs` in another are the same thing to a linear layer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import networkx as nx
import sympy

from passes.graph import as_expr, dtype_of, shape_of
from passes.operations import Operation, operator_name, source_of
from passes.signature import silent_hashing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import Node

    from passes.origins import Origins

_SHAPE_DECIDES = frozenset({"view", "_unsafe_view", "reshape", "expand", "empty"})
"""Operators whose size arguments say no more than the shape of their result."""


def canonicalize(operation: Operation, origins: Origins) -> nx.DiGraph[int]:
    """Return the canonical graph of an operation.

    Each node has a `label`, and a request dimension also its `request` name, which enters no hash; each edge has a `label`.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    index: dict[Node, int] = {}
    requests: dict[sympy.Basic, int] = {}
    for operand, spec in zip(operation.operands, operation.inputs, strict=True):
        index[operand] = _add(graph, "parameter" if spec.is_parameter else "input", operand, origins, requests)
    state = None
    if operation.stateful is not None:
        state = graph.number_of_nodes()
        graph.add_node(state, label=f"state {json.dumps(dict(sorted(operation.stateful.items())))}")
        for tensor in operation.held:
            place = graph.number_of_nodes()
            graph.add_node(place, label=f"held {tensor.dtype}[{', '.join(str(d.value) for d in tensor.shape)}]")
            graph.add_edge(place, state, label="held")
    for node in operation.nodes:
        if source_of(node) is not node:
            index[node] = index[source_of(node)]
            continue
        index[node] = _add(graph, f"{operator_name(node)} {_literals(node, origins)}", node, origins, requests)
        for position, operand in _operands(node):
            if operand in index:
                inner = operand not in operation.operands and source_of(operand) is not operand
                label = f"{position} result {operand.args[1]}" if inner else position
                _connect(graph, index[operand], index[node], label)
        if state is not None:
            graph.add_edge(state, index[node], label="state")
    return graph


def request_order(graph: nx.DiGraph[int]) -> tuple[str, ...]:
    """Return the names of the request dimensions in canonical order: by their place in the graph, not by name."""
    with silent_hashing():
        hashes = nx.weisfeiler_lehman_subgraph_hashes(graph, node_attr="label", edge_attr="label", iterations=4)
    dims = [(hashes[n][-1], data["request"]) for n, data in graph.nodes(data=True) if "request" in data]
    return tuple(name for _, name in sorted(dims))


def _add(graph: nx.DiGraph[int], kind: str, node: Node, origins: Origins, requests: dict[sympy.Basic, int]) -> int:
    """Add a node for a tensor or operator, and tie it to the request dimensions in its shape."""
    place: int = graph.number_of_nodes()
    graph.add_node(place, label=kind)
    shape = shape_of(node)
    if shape is None:
        return place
    sizes = []
    for axis, size in enumerate(map(origins.concrete, shape)):
        free = sorted(size.free_symbols, key=str)
        sizes.append("request" if free else str(size))
        for symbol in free:
            if symbol not in requests:
                requests[symbol] = graph.number_of_nodes()
                graph.add_node(requests[symbol], label="request", request=str(symbol))
            _connect(graph, requests[symbol], place, f"axis {axis} {_template(size, symbol)}")
    graph.nodes[place]["label"] = f"{kind} {dtype_of(node)}[{', '.join(sizes)}]"
    return place


def _connect(graph: nx.DiGraph[int], source: int, target: int, label: str) -> None:
    """Add an edge; a second one between the same nodes joins the first one's label."""
    if graph.has_edge(source, target):
        label = f"{graph.edges[source, target]['label']}; {label}"
    graph.add_edge(source, target, label=label)


def _template(size: sympy.Expr, symbol: sympy.Basic) -> str:
    """Return a size with the names of its request dimensions taken out."""
    return str(size.xreplace({s: sympy.Symbol("x" if s == symbol else "y") for s in size.free_symbols}))


def _operands(node: Node) -> Iterator[tuple[str, Node]]:
    from torch.fx import Node as FxNode

    for name, value in _arguments(node):
        if isinstance(value, FxNode):
            yield name, value


def _literals(node: Node, origins: Origins) -> str:
    """Return the non-tensor arguments by value: numbers, flags, element types. Devices and identities are left out."""
    import torch

    if operator_name(node) in _SHAPE_DECIDES:
        return ""
    found = {}
    for name, value in _arguments(node):
        if isinstance(value, torch.fx.Node):
            number = value.meta.get("val")
            if isinstance(number, (int, float, torch.SymInt, torch.SymFloat)):
                size = origins.concrete(as_expr(number))
                found[name] = "request" if size.free_symbols else str(size)
        elif isinstance(value, (bool, int, float, str, torch.dtype)):
            found[name] = str(value)
    return json.dumps(found, sort_keys=True)


def _arguments(node: Node) -> Iterator[tuple[str, object]]:
    """Yield a node's arguments with their positions, lists flattened."""
    wrapped = str(node.target).startswith("auto_functionalized")
    for name, value in [*((str(i), a) for i, a in enumerate(node.args)), *node.kwargs.items()]:
        if wrapped and name == "0":
            continue
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
        else:
            yield name, value
