"""Run a captured graph operation by operation, each as a graph module of its own, with the views between them in their places.

So every operation meets what it meets in a real forward: operands that other operations have just computed, and parameters last
read a whole forward ago. Sizes are evaluated from the symbols that they were traced as; nothing of the graph runs for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx

from passes.graph import as_expr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import sympy
    from torch.fx import GraphModule, Node

    from passes.graph import CapturedGraph
    from passes.operation import Operation


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A part of a captured graph as code of its own."""

    inputs: tuple[Node, ...]
    """Nodes of the captured graph whose values the code takes, operands and sizes, in the order of its arguments."""
    outputs: tuple[Node, ...]
    """Nodes of the captured graph whose values it returns, as a tuple."""
    module: GraphModule
    """The code."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A subgraph in its turn."""

    operation: int | None
    """Place of the operation among the analysed ones; None for what runs between operations."""
    subgraph: Subgraph
    """What it runs."""
    finished: tuple[Node, ...]
    """Values that no later piece reads."""


def extract_subgraph(nodes: Sequence[Node]) -> Subgraph:
    """Return the nodes as a graph module whose inputs are the values that they read from outside."""
    from torch import nn
    from torch.fx import Graph, GraphModule

    members = set(nodes)
    inputs = tuple(dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in members))
    outputs = tuple(n for n in nodes if any(user not in members and not is_size(user) for user in n.users))
    graph = Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    graph.lint()
    return Subgraph(inputs, outputs, GraphModule(nn.Module(), graph))


def split_graph(captured: CapturedGraph, operations: Sequence[Operation]) -> tuple[Piece, ...]:
    """Return the pieces of a captured graph in an order in which they can run, as near to the graph's own as that allows."""
    owner = {node: place for place, operation in enumerate(operations) for node in operation.nodes}
    groups: dict[Node | int, list[Node]] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function" and not is_size(node):
            groups.setdefault(owner.get(node, node), []).append(node)
    subgraphs = {key: extract_subgraph(nodes) for key, nodes in groups.items()}
    maker = {node: key for key, nodes in groups.items() for node in nodes}
    position = {node: place for place, node in enumerate(captured.graph.nodes)}
    order: nx.DiGraph[Node | int] = nx.DiGraph()
    order.add_nodes_from(groups)
    order.add_edges_from((maker[source], key) for key, part in subgraphs.items() for source in part.inputs if source in maker)
    keys = list(nx.lexicographical_topological_sort(order, key=lambda key: position[groups[key][-1]]))
    last = {node: key for key in keys for node in (*subgraphs[key].inputs, *subgraphs[key].outputs) if node in maker}
    finished: dict[Node | int, list[Node]] = {}
    for node, key in last.items():
        finished.setdefault(key, []).append(node)
    returned = {source for node in captured.graph.nodes if node.op == "output" for source in node.all_input_nodes}
    return tuple(
        Piece(
            key if isinstance(key, int) else None,
            subgraphs[key],
            tuple(node for node in finished.get(key, ()) if node not in returned),
        )
        for key in keys
    )


def run_pieces(
    pieces: Sequence[Piece], values: Mapping[Node, object], run: Callable[[int, Callable[[], Any]], Any]
) -> dict[Node, object]:
    """Run pieces in their order, and return the values that are left: what was given, and what the graph returns.

    Args:
        pieces: The pieces of a captured graph.
        values: Values of the graph's placeholders, constants and sizes.
        run: Called with each operation's place and code; runs the code and returns its result.
    """
    known = dict(values)
    for piece in pieces:
        arguments = [known[node] for node in piece.subgraph.inputs]
        forward = piece.subgraph.module.forward

        def call(forward: Callable[..., Any] = forward, arguments: list[object] = arguments) -> Any:  # noqa: ANN401 - its results
            return forward(*arguments)

        results = call() if piece.operation is None else run(piece.operation, call)
        known.update(zip(piece.subgraph.outputs, results, strict=True))
        for node in piece.finished:
            del known[node]
    return known


def is_size(node: Node) -> bool:
    """Tell arithmetic on sizes from code that holds tensors."""
    import torch

    numbers = (bool, int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
    return isinstance(node.meta.get("val"), numbers)


def evaluate(size: object, symbols: Mapping[sympy.Symbol, sympy.Integer]) -> int | float | bool:
    """Return a size of the graph as a number, given its symbols' values."""
    expr = as_expr(size).xreplace(dict(symbols))
    if expr.is_Boolean:
        return bool(expr)
    return int(expr) if expr.is_integer else float(expr)
