"""Bring an operation into a canonical graph: what it computes, free of names, layer numbers, addresses and node order.

Nodes carry operator, element type and dimensions; edges carry operand position. Configured dimensions enter by value. A request
dimension is a node of its own without a name, tied to the tensors and arguments that it sizes, so that `num_tokens` in one model
and `num_reqs` in another are the same thing to a linear layer; an expression of request dimensions is a tree of nodes over them.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import networkx as nx

from passes.graph import dtype_of, number_of, shape_of
from passes.operators import is_functionalized, operator_name, source_of
from passes.request_dims import find_request_dims

if TYPE_CHECKING:
    from collections.abc import Iterator

    import sympy
    from torch.fx import Node

    from passes.operation import Operation
    from passes.origins import Origins

    Use: TypeAlias = tuple[int, str, sympy.Expr]
    """A place in the graph, what is sized there, and the size."""

_SHAPE_DECIDES = frozenset({"view", "_unsafe_view", "reshape", "expand", "empty"})
"""Operators whose size arguments say no more than the shape of their result."""
_UNORDERED = frozenset({"Add", "Mul", "Max", "Min"})
"""Functions of sizes whose arguments may come in any order."""


def canonicalize(operation: Operation, origins: Origins) -> nx.DiGraph[int]:
    """Return the canonical graph of an operation.

    Each node has a `label`, and a request dimension also its `request` expression, which enters no hash; each edge has a `label`.
    """
    from torch.fx import Node

    graph: nx.DiGraph[int] = nx.DiGraph()
    places: dict[Node, int] = {}
    uses: list[Use] = []
    for operand, spec in zip(operation.operands, operation.inputs, strict=True):
        places[operand] = _add(graph, "parameter" if spec.is_parameter else "input")
        uses += _describe(graph, places[operand], operand, origins)
    state = None
    if operation.stateful is not None:
        state = _add(graph, f"state {json.dumps(dict(sorted(operation.stateful.items())))}")
        for tensor in operation.held:
            held = _add(graph, f"held {tensor.dtype}[{', '.join(str(d.value) for d in tensor.shape)}]")
            _connect(graph, held, state, "held")
    for node in operation.nodes:
        if source_of(node) is not node:
            places[node] = places[source_of(node)]
            continue
        place = _add(graph, operator_name(node))
        uses += _literals(graph, place, node, operation, origins)
        uses += _describe(graph, place, node, origins)
        for position, value in _arguments(node):
            if isinstance(value, Node) and value in places:
                inner = value not in operation.operands and source_of(value) is not value
                _connect(graph, places[value], place, f"{position} result {value.args[1]}" if inner else position)
        if state is not None:
            _connect(graph, state, place, "state")
        places[node] = place
    _tie(graph, uses)
    return graph


def _add(graph: nx.DiGraph[int], label: str) -> int:
    place: int = graph.number_of_nodes()
    graph.add_node(place, label=label)
    return place


def _connect(graph: nx.DiGraph[int], source: int, target: int, label: str) -> None:
    """Add an edge; a second one between the same nodes joins the first one's label."""
    if graph.has_edge(source, target):
        label = f"{graph.edges[source, target]['label']}; {label}"
    graph.add_edge(source, target, label=label)


def _describe(graph: nx.DiGraph[int], place: int, node: Node, origins: Origins) -> Iterator[Use]:
    """Append element type and shape to the label of a tensor's node; yield where the request sizes it."""
    shape = shape_of(node)
    if shape is None:
        return
    sizes = [origins.concrete(size) for size in shape]
    text = ", ".join("request" if size.free_symbols else str(size) for size in sizes)
    graph.nodes[place]["label"] += f" {dtype_of(node)}[{text}]"
    yield from ((place, f"axis {axis}", size) for axis, size in enumerate(sizes))


def _literals(graph: nx.DiGraph[int], place: int, node: Node, operation: Operation, origins: Origins) -> Iterator[Use]:
    """Append an operator's non-tensor arguments to its label by value; yield those that the request sets.

    A process group enters by its number of ranks. Left out are devices, objects of the engine, and texts in a stateful operation:
    they name the state.
    """
    import torch

    plain = (bool, int, float, complex, torch.dtype, torch.layout, torch.memory_format)
    found = {}
    for position, value in _arguments(node) if operator_name(node) not in _SHAPE_DECIDES else ():
        number = number_of(value)
        if number is not None:
            size = origins.concrete(number)
            found[position] = "request" if size.free_symbols else str(size)
            yield place, f"argument {position}", size
        elif isinstance(value, str) and value in operation.group_sizes:
            found[position] = f"{operation.group_sizes[value]} ranks"
        elif isinstance(value, plain) or (isinstance(value, str) and operation.stateful is None):
            found[position] = repr(value)
    graph.nodes[place]["label"] += f" {json.dumps(found, sort_keys=True)}"


def _arguments(node: Node) -> Iterator[tuple[str, object]]:
    """Yield a node's arguments with their positions, lists flattened to any depth."""
    wrapped = is_functionalized(node)
    positional = {str(i): value for i, value in enumerate(node.args) if not (wrapped and i == 0)}
    for name, value in {**positional, **node.kwargs}.items():
        # Whether the wrapper was given a tensor or a view of all of it says nothing about the operator.
        if not (wrapped and name.endswith("_alias")):
            yield from _flat(name, value)


def _flat(position: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _flat(f"{position}.{i}", item)
    else:
        yield position, value


def _tie(graph: nx.DiGraph[int], uses: list[Use]) -> None:
    """Add the request dimensions, and tie them to what they size."""
    dims = find_request_dims(size for _, _, size in uses)
    places: dict[sympy.Expr, int] = {}
    for place, where, size in uses:
        if size.free_symbols:
            _connect(graph, _size(graph, size.xreplace(dims), places), place, where)


def _size(graph: nx.DiGraph[int], size: sympy.Expr, places: dict[sympy.Expr, int]) -> int:
    """Return the node of a size: a request dimension, or a function over the nodes of its arguments."""
    if size in places:
        return places[size]
    if size.is_Symbol:
        places[size] = _add(graph, "request")
        graph.nodes[places[size]]["request"] = str(size)
        return places[size]
    places[size] = _add(graph, str(size) if size.is_Number else type(size).__name__)
    for position, argument in enumerate(size.args):
        label = "" if type(size).__name__ in _UNORDERED else str(position)
        _connect(graph, _size(graph, argument, places), places[size], label)
    return places[size]
