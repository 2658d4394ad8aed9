"""Give a canonical graph its signature: a hash finds candidates, an exact check decides.

Method: the Weisfeiler-Lehman graph hash (Shervashidze et al., JMLR 2011; networkx) over node and edge labels. It cannot tell some
graphs apart, so equal hashes are confirmed by graph isomorphism (VF2) before two operations count as one.
"""

from __future__ import annotations

import hashlib
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import networkx as nx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SCHEME = 1
"""Version of the canonical form and of the hash. Signatures of different schemes never compare equal."""


@contextmanager
def silent_hashing() -> Iterator[None]:
    """Keep networkx quiet about its directed hashes of before 3.5, which this scheme never used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hashes produced for", UserWarning)
        yield


def sign(graph: nx.DiGraph[int]) -> str:
    """Return the signature of a canonical graph: 32 hexadecimal digits."""
    with silent_hashing():
        digest = nx.weisfeiler_lehman_graph_hash(graph, node_attr="label", edge_attr="label", iterations=4, digest_size=16)
    return hashlib.sha256(f"dooly-operation-{SCHEME}:{digest}".encode()).hexdigest()[:32]


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
