from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from passes import analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    import networkx as nx

    from passes import CapturedGraph

    Canonical = Callable[..., nx.DiGraph[int]]


def _text(graph: nx.DiGraph[int]) -> list[str]:
    nodes = [f"{node}: {data['label']}" for node, data in graph.nodes(data=True)]
    return nodes + [f"{source} -> {target}: {label}" for source, target, label in graph.edges(data="label")]


def test_a_linear_layer(canonical: Canonical) -> None:
    """Configured sizes stand by value, the request's as a nameless node, and edges carry the operand's position."""
    assert _text(canonical(nn.Linear(8, 12), torch.ones(5, 8))) == [
        "0: parameter float32[12, 8]",
        "1: parameter float32[12]",
        "2: input float32[request, 8]",
        "3: request",
        "4: t {} float32[8, 12]",
        "5: addmm {} float32[request, 12]",
        "0 -> 4: 0",
        "1 -> 5: 0",
        "2 -> 5: 1",
        "3 -> 2: axis 0 x",
        "3 -> 5: axis 0 x",
        "4 -> 5: 2",
    ]


def test_literals_stand_by_value(canonical: Canonical) -> None:
    """Flags, floating-point attributes and integer attributes enter with their values."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps = 1e-5
            self.power = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.pow(self.power) * torch.rsqrt(x.mean(-1, keepdim=True) + self.eps)

    labels = [label.partition(" float32")[0] for _, label in canonical(Norm(), torch.ones(5, 8)).nodes(data="label")]
    assert labels == [
        "input",
        "request",
        "request",
        'pow {"1": "3"}',
        'mean {"1.0": "-1", "2": "True"}',
        'add {"1": "1e-05"}',
        "rsqrt {}",
        "mul {}",
    ]


def test_results_of_one_operator_are_told_apart(canonical: Canonical) -> None:
    """What reads the second result of an operator has an edge that says so."""

    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values, places = torch.topk(x, 2, dim=-1)
            return values * places

    assert "3 -> 4: 0 result 0; 1 result 1" in _text(canonical(Best(), torch.ones(5, 8)))


def test_state_is_a_node(canonical: Canonical) -> None:
    """The attributes of a stateful module stand in a node of their own, in the order of their names."""
    graph = canonical(nn.Sequential(nn.GELU()), torch.ones(5, 8), stateful={"0": {"window": 4, "kind": "Attention"}})
    assert 'state {"kind": "Attention", "window": 4}' in [label for _, label in graph.nodes(data="label")]


def test_a_split_is_tied_to_its_parts(canonical: Canonical) -> None:
    """Parts that an operation cuts from its own results hang on the split that made them."""

    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(x).split(4, dim=-1)
            c, d = torch.tanh(x).split(4, dim=-1)
            return a * d - c * b

    class Uncut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b = torch.relu(x).split(4, dim=-1)
            c, d = torch.tanh(x).split(4, dim=-1)
            return a * b - c * d

    from passes import same_operation

    cut, uncut = canonical(Cut(), torch.ones(5, 8)), canonical(Uncut(), torch.ones(5, 8))
    assert sorted(cut.nodes(data="label"), key=str) == sorted(uncut.nodes(data="label"), key=str)
    assert not same_operation(cut, uncut)


def test_request_dims_are_ordered_by_their_place(capture: Callable[..., CapturedGraph]) -> None:
    """The order of request dimensions follows the graph, whatever they are called."""

    class Scores(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            return torch.softmax(q @ k.t(), dim=-1)

    def order(queries: str, keys: str) -> list[str]:
        captured = capture(Scores(), torch.ones(5, 8), torch.ones(6, 8), request_dims={"q": (queries, "d"), "k": (keys, None)})
        (operation,) = analyse(captured).operations
        return [{queries: "queries", keys: "keys"}.get(name, "size") for name in operation.request_dims]

    assert sorted(order("a", "b")) == ["keys", "queries", "size"]
    assert order("a", "b") == order("b", "a") == order("z", "a")
