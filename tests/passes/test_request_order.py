from __future__ import annotations

from typing import TYPE_CHECKING

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import PassError, analyse, same_operation
from passes.request_order import request_order

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph


def _chains(depth: int, *, positions: tuple[str, str]) -> nx.DiGraph[int]:
    """Return two inputs, each sized by a request dimension of its own, through `depth` operators each into one more."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_node(0, label="sub")
    for dim, position in zip(("left", "right"), positions, strict=True):
        above = 0
        for step in range(depth):
            node = graph.number_of_nodes()
            graph.add_node(node, label="relu")
            graph.add_edge(node, above, label=position if step == 0 else "0")
            above = node
        graph.add_node(node := graph.number_of_nodes(), label="request", request=dim)
        graph.add_edge(node, above, label="axis 0")
    return graph


def _shuffled(graph: nx.DiGraph[int], order: list[int], names: dict[str, str]) -> nx.DiGraph[int]:
    """Return a graph with its nodes numbered and added in another order, and its request dimensions renamed."""
    relabelled = nx.relabel_nodes(graph, dict(enumerate(order)))
    result: nx.DiGraph[int] = nx.DiGraph()
    result.add_nodes_from((node, dict(data)) for node, data in sorted(relabelled.nodes(data=True)))
    result.add_edges_from(sorted(relabelled.edges(data=True), key=str))
    for _, data in result.nodes(data=True):
        if "request" in data:
            data["request"] = names[data["request"]]
    return result


def _by_position(graph: nx.DiGraph[int]) -> nx.DiGraph[int]:
    """Return a graph in which each request dimension is labelled with its place in the order."""
    order = request_order(graph)
    placed = graph.copy()
    for _, data in placed.nodes(data=True):
        if "request" in data:
            data["label"] = f"request {order.index(data['request'])}"
    return placed


@settings(max_examples=25, derandomize=True)
@given(data=st.data(), depth=st.integers(1, 9), names=st.permutations(["a", "b"]))
def test_a_difference_far_away_decides(data: st.DataObject, depth: int, names: list[str]) -> None:
    """Dimensions that differ in an operand's position, any number of operators away, always come in one order."""
    graph = _chains(depth, positions=("0", "1"))
    renamed = dict(zip(("left", "right"), names, strict=True))
    order = data.draw(st.permutations(range(len(graph))))
    assert request_order(_shuffled(graph, order, renamed)) == tuple(renamed[name] for name in request_order(graph))


@settings(max_examples=25, derandomize=True)
@given(data=st.data(), names=st.permutations(["a", "b"]))
def test_interchangeable_dims_may_swap(data: st.DataObject, names: list[str]) -> None:
    """Where two dimensions play the same part, names and numbers give orders that mean the same."""
    graph = _chains(3, positions=("0", "0"))
    order = data.draw(st.permutations(range(len(graph))))
    other = _shuffled(graph, order, dict(zip(("left", "right"), names, strict=True)))
    assert sorted(request_order(other)) == ["a", "b"]
    assert same_operation(_by_position(graph), _by_position(other))


def _rings(*lengths: int) -> nx.DiGraph[int]:
    """Return rings of operators, each operator sized by a request dimension of its own that is named after the ring."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    for ring, length in enumerate(lengths):
        places = range(len(graph), len(graph) + length)
        graph.add_nodes_from(places, label="relu")
        nx.add_cycle(graph, places, label="0")
        for place in places:
            dim = len(graph)
            graph.add_node(dim, label="request", request=f"{length} {ring} {place}")
            graph.add_edge(dim, place, label="axis 0")
    return graph


@settings(max_examples=5, derandomize=True)
@given(order=st.permutations(range(24)))
def test_dims_that_colours_cannot_tell_apart_keep_their_order(order: list[int]) -> None:
    """A ring of six and two of three, alike to colour refinement, give their dimensions in one order up to symmetry."""
    graph = _rings(6, 3, 3)
    names = {name: name for _, name in graph.nodes(data="request") if name is not None}
    assert [name[0] for name in request_order(_shuffled(graph, order, names))] == [name[0] for name in request_order(graph)]


def test_dims_that_nothing_tells_apart_are_refused() -> None:
    """A dimension of a ring of six and one of two rings of three: not interchangeable, and nothing orders them."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    for name, rings in {"six": [range(6)], "threes": [range(6, 9), range(9, 12)]}.items():
        for ring in rings:
            graph.add_nodes_from(ring, label="relu")
            nx.add_cycle(graph, ring, label="0")
        graph.add_node(name, label="request", request=name)
        graph.add_edges_from(((name, place) for ring in rings for place in ring), label="axis 0")
    graph = nx.convert_node_labels_to_integers(graph)
    with pytest.raises(
        PassError, match=r"request order: (six and threes|threes and six) look alike but are not interchangeable; "
    ):
        request_order(graph)


def test_request_dims_are_ordered_by_their_place(capture: Callable[..., CapturedGraph]) -> None:
    """The order of a captured operation's request dimensions follows the graph, whatever they are called."""

    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return torch.softmax(q @ k.t(), dim=-1)

    def order(queries: str, keys: str) -> list[str]:
        captured = capture(Scores(), torch.ones(5, 8), torch.ones(6, 8), request_dims={"q": (queries, "d"), "k": (keys, None)})
        (operation,) = analyse(captured).operations
        return [{queries: "queries", keys: "keys"}.get(name, "size") for name in operation.request_dims]

    assert sorted(order("a", "b")) == ["keys", "queries", "size"]
    assert order("a", "b") == order("b", "a") == order("z", "a")
