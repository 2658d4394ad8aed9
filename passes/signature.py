"""Give a canonical graph its signature: a hash finds candidates, an exact check decides.

Method: colour refinement (Weisfeiler and Leman, 1968) over node and edge labels until no round tells more nodes apart; the
signature is a digest of all colours. It cannot tell some graphs apart, so equal signatures are confirmed by graph isomorphism
(VF2) before two operations count as one.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

SCHEME = 2
"""Version of the canonical form and of the hash. Signatures of different schemes never compare equal."""


def sign(graph: nx.DiGraph[int]) -> str:
    """Return the signature of a canonical graph: 32 hexadecimal digits."""
    return digest(f"dooly-operation-{SCHEME}", refine(graph).values())


def digest(scheme: str, colours: Iterable[str]) -> str:
    """Return the digest of a graph's colours under a scheme: 32 hexadecimal digits."""
    return _digest([scheme, *sorted(colours)])


def refine(graph: nx.DiGraph[int]) -> dict[int, str]:
    """Return a colour for each node: equal for nodes that play the same part, and different wherever refinement can tell."""
    colours = {node: _digest(label) for node, label in graph.nodes(data="label")}
    known = 0
    while known < len(kinds := set(colours.values())):
        known = len(kinds)
        colours = {node: _digest([colour, *_neighbours(graph, node, colours)]) for node, colour in colours.items()}
    return colours


def _neighbours(graph: nx.DiGraph[int], node: int, colours: Mapping[int, str]) -> tuple[list[list[str]], list[list[str]]]:
    """Return label and colour of each edge that comes in, and of each that goes out, in no order of the graph's."""
    sources = sorted([label, colours[source]] for source, _, label in graph.in_edges(node, data="label"))
    targets = sorted([label, colours[target]] for _, target, label in graph.out_edges(node, data="label"))
    return sources, targets


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]


def same_operation(left: nx.DiGraph[int], right: nx.DiGraph[int]) -> bool:
    """Tell exactly whether two canonical graphs are one operation."""

    def same_label(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        return bool(a["label"] == b["label"])

    return bool(nx.is_isomorphic(left, right, node_match=same_label, edge_match=same_label))


def resolve(graph: nx.DiGraph[int], known: Callable[[str], nx.DiGraph[int] | None]) -> str:
    """Return the signature of a graph, given what is `known` under each signature already.

    Where another operation holds the same hash, a counter is appended, so that the two are never taken for one.
    """
    signature = base = sign(graph)
    for attempt in range(1, 100):
        holder = known(signature)
        if holder is None or same_operation(graph, holder):
            return signature
        signature = f"{base}-{attempt}"
    msg = f"signature: more than 99 operations share the hash {base}"
    raise AssertionError(msg)


def sign_apart(graphs: Sequence[nx.DiGraph[int]]) -> tuple[str, ...]:
    """Return the signature of each graph; equal ones are one operation."""
    known: dict[str, nx.DiGraph[int]] = {}
    signatures = []
    for graph in graphs:
        signatures.append(resolve(graph, known.get))
        known[signatures[-1]] = graph
    return tuple(signatures)


def to_json(graph: nx.DiGraph[int]) -> dict[str, Any]:
    """Return a canonical graph as plain JSON data."""
    return {
        "scheme": SCHEME,
        "nodes": [data["label"] for _, data in sorted(graph.nodes(data=True))],
        "edges": sorted([u, v, data["label"]] for u, v, data in graph.edges(data=True)),
    }


def from_json(data: Mapping[str, Any]) -> nx.DiGraph[int]:
    """Return the canonical graph that `to_json` wrote."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from((i, {"label": label}) for i, label in enumerate(data["nodes"]))
    graph.add_edges_from((u, v, {"label": label}) for u, v, label in data["edges"])
    return graph
