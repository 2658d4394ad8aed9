from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    import networkx as nx

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
        "3: t {} float32[8, 12]",
        "4: addmm {} float32[request, 12]",
        "5: request",
        "0 -> 3: 0",
        "1 -> 4: 0",
        "2 -> 4: 1",
        "3 -> 4: 2",
        "5 -> 2: axis 0",
        "5 -> 4: axis 0",
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
        'pow {"1": "3"}',
        'mean {"1.0": "-1", "2": "True"}',
        'add {"1": "1e-05"}',
        "rsqrt {}",
        "mul {}",
        "request",
        "request",
    ]


def test_a_size_is_a_tree_over_request_dims(canonical: Canonical) -> None:
    """An expression of a request dimension is nodes of its own, tied to the arguments and axes that it sizes."""

    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(torch.relu(x)[: x.shape[0] // 2])

    assert _text(canonical(Half(), torch.ones(6, 8))) == [
        "0: input float32[request, request]",
        "1: relu {} float32[request, request]",
        '2: slice {"1": "0", "2": "0", "3": "request"} float32[request, request]',
        "3: tanh {} float32[request, request]",
        "4: request",
        "5: request",
        "6: FloorDiv",
        "7: 2",
        "0 -> 1: 0",
        "1 -> 2: 0",
        "2 -> 3: 0",
        "4 -> 0: axis 0",
        "4 -> 1: axis 0",
        "4 -> 6: 0",
        "5 -> 0: axis 1",
        "5 -> 1: axis 1",
        "5 -> 2: axis 1",
        "5 -> 3: axis 1",
        "6 -> 2: argument 3; axis 0",
        "6 -> 3: axis 0",
        "7 -> 6: 1",
    ]


def test_a_product_of_request_dims_is_one(canonical: Canonical) -> None:
    """A linear layer over batch and sequence sees their product alone: the same graph as over tokens."""
    over_both = canonical(nn.Linear(8, 12), torch.ones(3, 5, 8), request_dims={"args[0]": ("batch", "seq", None)})
    assert _text(over_both) == _text(canonical(nn.Linear(8, 12), torch.ones(5, 8)))
    assert [name for _, name in over_both.nodes(data="request") if name] == ["batch*seq"]


def test_a_constant_is_an_input(canonical: Canonical) -> None:
    """A tensor written into the model's code is an input of its shape; its values tell nothing."""

    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1.0, 2.0, 3.0])

    labels = [label for _, label in canonical(Scaled(), torch.ones(5, 3)).nodes(data="label")]
    assert labels == [
        "input float32[3]",
        "input float32[request, 3]",
        "lift_fresh_copy {} float32[3]",
        "mul {} float32[request, 3]",
        "request",
    ]


@torch.library.custom_op("dooly_tests::store", mutates_args=("cache",))
def _store(x: Tensor, cache: Tensor, layer_name: str) -> None:
    assert layer_name
    cache.copy_(x)


@_store.register_fake
def _(x: Tensor, cache: Tensor, layer_name: str) -> None:
    pass


class Store(nn.Module):
    """Writes into a cache through an operator of its own."""

    def __init__(self, layer_name: str) -> None:
        super().__init__()
        self.layer_name = layer_name

    def forward(self, x: Tensor) -> Tensor:
        """Return the cache."""
        cache = torch.empty_like(x)
        torch.ops.dooly_tests.store(x, cache, self.layer_name)
        return cache + 1


def test_a_writing_operator_stands_by_its_own_name(canonical: Canonical) -> None:
    """The wrapper around an operator that writes is seen through; its arguments go by their names."""
    assert _text(canonical(Store("a"), torch.ones(5, 8))) == [
        "0: input float32[request, request]",
        '1: empty_like {"pin_memory": "False"} float32[request, request]',
        '2: dooly_tests.store {"_cache_base_index": "0", "layer_name": "\'a\'"}',
        '3: add {"1": "1"} float32[request, request]',
        "4: request",
        "5: request",
        "0 -> 1: 0",
        "0 -> 2: x",
        "1 -> 2: _all_bases.0",
        "2 -> 3: 0 result 1",
        "4 -> 0: axis 0",
        "4 -> 1: axis 0",
        "4 -> 3: axis 0",
        "5 -> 0: axis 1",
        "5 -> 1: axis 1",
        "5 -> 3: axis 1",
    ]


def test_texts_in_a_stateful_operation_name_its_state(canonical: Canonical) -> None:
    """A layer's name, which a stateful module hands to its operator, tells nothing; elsewhere a text is an argument."""
    stateful = {"0": {"kind": "Store"}}
    names = ("layers.0", "layers.1")
    one, other = (_text(canonical(nn.Sequential(Store(name)), torch.ones(5, 8), stateful=stateful)) for name in names)
    assert one == other
    one, other = (_text(canonical(Store(name), torch.ones(5, 8))) for name in names)
    assert one != other


def test_results_of_one_operator_are_told_apart(canonical: Canonical) -> None:
    """What reads the second result of an operator has an edge that says so."""

    class Best(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            values, places = torch.topk(x, 2, dim=-1)
            return values * places

    assert "1 -> 2: 0 result 0; 1 result 1" in _text(canonical(Best(), torch.ones(5, 8)))


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
