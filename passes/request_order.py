"""Order the request dimensions of a canonical graph by their place in it, so that points of two models mean the same.

Method: colour refinement, then individualisation (McKay and Piperno, J. Symb. Comput. 2014): the first dimension of the least
colour is marked, and the colours are refined again. Dimensions of one colour are told apart by the signatures of the graphs in
which each is marked; where those are equal too, an exact check proves that they are interchangeable, so either may go first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes._errors import PassError
from passes.signature import refine, same_operation, sign

if TYPE_CHECKING:
    import networkx as nx


def request_order(graph: nx.DiGraph[int]) -> tuple[str, ...]:
    """Return the names of the request dimensions in canonical order: neither names nor node numbers decide.

    Raises:
        PassError: Two dimensions play different parts, but neither colours nor signatures tell them apart.
    """
    names = {node: name for node, name in graph.nodes(data="request") if name is not None}
    order: list[int] = []
    while len(order) < len(names):
        marked = _mark(graph, order)
        colours = refine(marked) if len(names) > 1 else {}
        left = sorted((colours.get(node, ""), node) for node in names if node not in order)
        tied = [node for colour, node in left if colour == left[0][0]]
        order.append(tied[0] if len(tied) == 1 else _first(graph, order, tied))
    return tuple(names[node] for node in order)


def _mark(graph: nx.DiGraph[int], order: list[int]) -> nx.DiGraph[int]:
    """Return a copy of a graph in which the request dimensions of an order carry their positions."""
    marked = graph.copy()
    for position, node in enumerate(order):
        marked.nodes[node]["label"] = f"request {position}"
    return marked


def _first(graph: nx.DiGraph[int], order: list[int], tied: list[int]) -> int:
    """Return the dimension of one colour that goes next."""
    graphs = {node: _mark(graph, [*order, node]) for node in tied}
    signatures = {node: sign(marked) for node, marked in graphs.items()}
    first, *others = (node for node in tied if signatures[node] == min(signatures.values()))
    for other in others:
        if not same_operation(graphs[first], graphs[other]):
            one, two = (graph.nodes[node]["request"] for node in (first, other))
            msg = f"request order: {one} and {two} look alike but are not interchangeable; give them sizes that differ in form"
            raise PassError(msg)
    return first
