from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from passes import same_operation, sign
from passes.signature import from_json, resolve, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

    Signatures = Callable[..., dict[str, list[str]]]
    Canonical = Callable[..., nx.DiGraph[int]]

ROOT = Path(__file__).resolve().parents[2]


class Formula(nn.Module):
    """A norm with a difference, of several independent parts."""

    def __init__(self, size: int = 8, eps: float = 1e-5, *, swapped: bool = False, reordered: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps, self.swapped, self.reordered = eps, swapped, reordered

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        if self.reordered:
            right = torch.tanh(x) + self.eps
            left = torch.relu(x) * self.weight
        else:
            left = torch.relu(x) * self.weight
            right = torch.tanh(x) + self.eps
        return right - left if self.swapped else left - right


@pytest.fixture(scope="module")
def base(canonical: Canonical) -> nx.DiGraph[int]:
    """Return the canonical graph of the formula as it stands."""
    return canonical(Formula(), torch.ones(5, 8))


@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        (Formula(swapped=True), torch.float32),
        (Formula(eps=1e-6), torch.float32),
        (Formula(size=12), torch.float32),
        (Formula().to(torch.bfloat16), torch.bfloat16),
    ],
    ids=["operand order", "eps", "config size", "dtype"],
)
def test_what_changes_the_work_changes_the_signature(
    canonical: Canonical, base: nx.DiGraph[int], module: Formula, dtype: torch.dtype
) -> None:
    """Operand order, an attribute, a configured size and the element type each make another operation."""
    changed = canonical(module, torch.ones(5, module.weight.numel(), dtype=dtype))
    assert sign(changed) != sign(base)
    assert not same_operation(changed, base)


def test_a_state_attribute_changes_the_signature(canonical: Canonical) -> None:
    """Two stateful modules that differ in an attribute alone are two operations."""
    graphs = [
        canonical(nn.Sequential(nn.GELU()), torch.ones(5, 8), stateful={"0": {"kind": "Attention", "window": window}})
        for window in (None, 4, 8)
    ]
    assert len({sign(graph) for graph in graphs}) == 3


def test_node_order_does_not_change_the_signature(canonical: Canonical, base: nx.DiGraph[int]) -> None:
    """Independent nodes in another order are the same operation."""
    reordered = canonical(Formula(reordered=True), torch.ones(5, 8))
    assert list(reordered.nodes(data="label")) != list(base.nodes(data="label"))
    assert sign(reordered) == sign(base)
    assert same_operation(reordered, base)


def test_request_names_and_values_do_not_change_the_signature(canonical: Canonical, base: nx.DiGraph[int]) -> None:
    """What a request dimension is called, and how large it was, tells nothing."""
    other = canonical(Formula(), torch.ones(9, 8), request_dims={"x": ("num_reqs", None)})
    assert sign(other) == sign(base)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    names=st.lists(st.from_regex(r"[a-z]{1,8}_[0-9]", fullmatch=True), min_size=1, max_size=3, unique=True),
    layers=st.integers(0, 3),
)
def test_place_and_name_do_not_change_the_signature(
    signatures: Signatures, base: nx.DiGraph[int], names: list[str], layers: int
) -> None:
    """A module under any name, at any depth and behind any number of layers is the same operation."""

    class Nest(nn.Module):
        def __init__(self, name: str, inner: nn.Module) -> None:
            super().__init__()
            self.name = name
            self.add_module(name, inner)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = getattr(self, self.name)(x)
            return result

    module: nn.Module = Formula()
    for name in names:
        module = Nest(name, module)
    model = nn.Sequential(*(nn.GELU() for _ in range(layers)), module)
    found = signatures(model, torch.ones(5, 8))
    assert found[".".join([str(layers), *reversed(names)])] == [sign(base)]


@given(order=st.permutations(range(20)))
def test_node_numbers_do_not_change_the_signature(base: nx.DiGraph[int], order: list[int]) -> None:
    """Numbering the nodes in any other way gives the same signature, and the exact check agrees."""
    kept = [n for n in order if n < base.number_of_nodes()]
    relabelled = nx.relabel_nodes(base, dict(enumerate(kept)))
    shuffled: nx.DiGraph[int] = nx.DiGraph()
    shuffled.add_nodes_from(sorted(relabelled.nodes(data=True)))
    shuffled.add_edges_from(sorted(relabelled.edges(data=True), key=str))
    assert sign(shuffled) == sign(base)
    assert same_operation(shuffled, base)


@given(data=st.data())
def test_a_changed_label_is_another_operation(base: nx.DiGraph[int], data: st.DataObject) -> None:
    """Changing any one node or edge label changes the signature."""
    changed = base.copy()
    places = [*changed.nodes.values(), *changed.edges.values()]
    data.draw(st.sampled_from(places))["label"] += "'"
    assert sign(changed) != sign(base)


def test_json_keeps_a_canonical_graph(base: nx.DiGraph[int]) -> None:
    """A canonical graph read back from JSON is the same operation with the same signature."""
    read = from_json(to_json(base))
    assert sign(read) == sign(base)
    assert same_operation(read, base)


_PROGRAM = """
import sys, torch
from functools import partial
from torch import nn
from dooly.trace import dooly_backend, tracing
from passes import analyse

with tracing() as captures:
    torch.compile(nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12)), backend=partial(dooly_backend))(torch.ones(5, 8))
print(*[operation.signature for operation in analyse(captures[0].describe()).operations])
"""


def test_processes_agree(signatures: Signatures) -> None:
    """Two processes with different hash seeds give the signatures that this one gives."""
    here = [
        s for found in signatures(nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12)), torch.ones(5, 8)).values() for s in found
    ]
    assert len(here) == 2
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert run.stdout.split() == here


def _graph(*cycles: list[int]) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    for cycle in cycles:
        nx.add_cycle(graph, cycle, label="0")
    nx.set_node_attributes(graph, "add {}", "label")
    return graph


def test_equal_hashes_are_decided_exactly() -> None:
    """A cycle of six and two triangles hash alike; each keeps a signature of its own, and finds it again."""
    hexagon, triangles = _graph([0, 1, 2, 3, 4, 5]), _graph([0, 1, 2], [3, 4, 5])
    assert sign(hexagon) == sign(triangles)
    assert not same_operation(hexagon, triangles)
    known = {resolve(hexagon, {}.get): hexagon}
    second = resolve(triangles, known.get)
    assert second == f"{sign(triangles)}-1"
    known[second] = triangles
    assert resolve(_graph([5, 3, 1, 0, 2, 4]), known.get) == sign(hexagon)
    assert resolve(_graph([0, 2, 4], [1, 3, 5]), known.get) == second
