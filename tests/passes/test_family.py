"""Families: the same operation over other sizes."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import find_family, sign
from passes.family import mask

if TYPE_CHECKING:
    from collections.abc import Callable

    Canonical = Callable[..., nx.DiGraph[int]]


class Scaled(nn.Module):
    """A product, scaled by a number."""

    def __init__(self, inputs: int, outputs: int, scale: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(outputs, inputs))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of one row an input row."""
        return self.scale * (x @ self.weight.T)


@pytest.mark.parametrize(
    ("label", "masked", "numbers"),
    [
        ("parameter bfloat16[128256, 4096]", "parameter bfloat16[#, #]", (128256, 4096)),
        ("input int64[request]", "input int64[request]", ()),
        ("input float32[]", "input float32[]", ()),
        ('vllm_ir.rms_norm {"2": "1e-05"} bfloat16[request, 64]', 'vllm_ir.rms_norm {"2": "#"} bfloat16[request, #]', (1e-5, 64)),
        (
            '_softmax {"1": "-1", "2": "False"} float32[request, 8]',
            '_softmax {"1": "#", "2": "False"} float32[request, #]',
            (-1, 8),
        ),
        ('_to_copy {"dtype": "torch.float32"} float32[8]', '_to_copy {"dtype": "torch.float32"} float32[#]', (8,)),
        ('full {"1": "-inf"} float32[2]', 'full {"1": "-inf"} float32[#]', (2,)),
        (
            'state {"gated": true, "sizes": [2, 3], "window": null}',
            'state {"gated": true, "sizes": ["#", "#"], "window": null}',
            (2, 3),
        ),
        ('state {"a": {"b": 7}}', 'state {"a": {"b": "#"}}', (7,)),
        ("held bfloat16[16, 8]", "held bfloat16[#, #]", (16, 8)),
        ("32", "#", (32,)),
        (
            'state {"name": "1_000", "scale": 2.5, "version": "2.13.0"}',
            'state {"name": "1_000", "scale": "#", "version": "2.13.0"}',
            (2.5,),
        ),
        ("Mul", "Mul", ()),
    ],
)
def test_numbers_are_masked_and_nothing_else(label: str, masked: str, numbers: tuple[float, ...]) -> None:
    """Sizes, numeric arguments and constants go; operators, element types, texts, truth values and request sizes stay."""
    assert mask(label) == (masked, numbers)


def test_sizes_tell_members_of_a_family_apart(canonical: Canonical) -> None:
    """Two widths and two scales are one family and four signatures; the numbers tell which is which, in one order."""
    found = {}
    for inputs, outputs, scale in ((8, 12, 0.5), (16, 12, 0.5), (8, 24, 0.5), (8, 12, 0.25)):
        graph = canonical(Scaled(inputs, outputs, scale), torch.ones(5, inputs))
        found[inputs, outputs, scale] = (sign(graph), find_family(graph))
    assert len({signature for signature, _ in found.values()}) == 4
    assert len({family.signature for _, family in found.values()}) == 1
    base = found[8, 12, 0.5][1].numbers
    wider, longer, weaker = (found[key][1].numbers for key in ((16, 12, 0.5), (8, 24, 0.5), (8, 12, 0.25)))
    assert wider == tuple(16 if n == 8 else n for n in base)
    assert longer == tuple(24 if n == 12 else n for n in base)
    assert weaker == tuple(0.25 if n == 0.5 else n for n in base)


@pytest.mark.parametrize("other", [Scaled(8, 12).to(torch.bfloat16), nn.Linear(8, 12), nn.Linear(8, 12, bias=False), nn.SiLU()])
def test_what_computes_something_else_is_another_family(other: nn.Module, canonical: Canonical) -> None:
    """Another element type, another operand, another operator: another family."""
    dtype = next((p.dtype for p in other.parameters()), torch.float32)
    base = find_family(canonical(Scaled(8, 12), torch.ones(5, 8)))
    assert find_family(canonical(other, torch.ones(5, 8, dtype=dtype))).signature != base.signature


labels = st.sampled_from(
    ["mul {} float32[request, 8]", "mul {} float32[request, 9]", "add {} float32[request, 8]", "request", "3"]
)


@given(st.lists(labels, min_size=1, max_size=7), st.data())
def test_the_order_of_nodes_says_nothing(drawn: list[str], data: st.DataObject) -> None:
    """However its nodes are numbered, a graph has one family and its numbers one order."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from((place, {"label": label}) for place, label in enumerate(drawn))
    for target in range(1, len(drawn)):
        for source in data.draw(st.sets(st.integers(0, target - 1), max_size=3)):
            graph.add_edge(source, target, label=str(source % 2))
    order = list(range(len(drawn)))
    random.Random(data.draw(st.integers(0, 99))).shuffle(order)  # noqa: S311 - an order of nodes
    renamed: nx.DiGraph[int] = nx.DiGraph()
    renamed.add_nodes_from((place, {"label": drawn[order.index(place)]}) for place in range(len(drawn)))
    renamed.add_edges_from((order[u], order[v], {"label": label}) for u, v, label in graph.edges(data="label"))
    assert find_family(renamed) == find_family(graph)
