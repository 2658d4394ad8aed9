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

from passes import SCHEME, same_operation, sign
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


@settings(max_examples=4, derandomize=True)
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
from dooly.tracing import dooly_backend, tracing
from passes import analyse

module = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12))
for name in sys.argv[1:]:
    module = nn.Sequential(nn.GELU(), nn.ModuleDict({name: module})[name])
with tracing() as captures:
    torch.compile(module, backend=partial(dooly_backend))(torch.ones(5, 8))
found = analyse(captures[0].describe(request_dims={"args[0]": (sys.argv[0], None)})).operations
print(*[operation.signature for operation in found if operation.operation.module_class != "GELU"])
"""


@pytest.mark.parametrize(("seed", "names"), [("1", []), ("2", ["decoder", "block"])], ids=["alone", "nested"])
def test_processes_agree(signatures: Signatures, seed: str, names: list[str]) -> None:
    """Processes with other hash seeds, with the module nested elsewhere, give the signatures that this one gives."""
    module = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12))
    here = [signature for found in signatures(module, torch.ones(5, 8)).values() for signature in found]
    command = [sys.executable, "-c", _PROGRAM, *names]
    environment = os.environ | {"PYTHONHASHSEED": seed}
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    assert run.stdout.split() == here
    assert len(here) == 2


def test_a_signature_stays_what_it_is() -> None:
    """The scheme's hash of a small graph, written down: a change of it needs a new scheme number."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from([(0, {"label": "input float32[request, 8]"}), (1, {"label": "relu {} float32[request, 8]"})])
    graph.add_node(2, label="request", request="num_tokens")
    graph.add_edges_from([(0, 1, {"label": "0"}), (2, 0, {"label": "axis 0"}), (2, 1, {"label": "axis 0"})])
    assert (SCHEME, sign(graph)) == (2, "d07594dd44bd9b6648b0d1b48efad296")


def test_a_linear_layer_is_one_operation_over_any_batch(canonical: Canonical) -> None:
    """Over tokens, batch and sequence, or more, it multiplies one matrix of rows; with a bias it is another operation."""

    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(8, 12, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.proj(x)
            return result

    graphs = [canonical(Projection(), torch.ones(*shape, 8)) for shape in [(5,), (3, 5), (2, 3, 5)]]
    assert len({sign(graph) for graph in graphs}) == 1
    assert sign(canonical(nn.Linear(8, 12), torch.ones(5, 8))) != sign(graphs[0])


def test_a_row_wise_operation_keeps_its_dims_apart(canonical: Canonical) -> None:
    """A norm over (batch, seq, hidden) sees both dimensions, and is another operation than over (tokens, hidden)."""
    graphs = [canonical(nn.Sequential(nn.LayerNorm(8)), torch.ones(*shape, 8)) for shape in [(5,), (3, 5)]]
    assert [sum("request" in data for data in graph.nodes.values()) for graph in graphs] == [1, 2]
    assert sign(graphs[0]) != sign(graphs[1])


def test_a_request_dim_is_no_config_dim(canonical: Canonical) -> None:
    """The same operator over a configured and a request width makes two operations."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + (self.weight if y is x else y)

    configured = canonical(Wide(), x := torch.ones(5, 8), x)
    assert sign(configured) != sign(canonical(Wide(), torch.ones(5, 8), torch.ones(8)))


@given(depth=st.integers(1, 12))
def test_a_difference_far_away_tells(depth: int) -> None:
    """Two chains whose ends are exchanged make another operation, however long the chains are."""

    def chains(*ends: tuple[str, str]) -> nx.DiGraph[int]:
        graph: nx.DiGraph[int] = nx.DiGraph()
        for first, last in ends:
            labels = [first, *(["exp {}"] * depth), last]
            nodes = range(len(graph), len(graph) + len(labels))
            graph.add_nodes_from((node, {"label": label}) for node, label in zip(nodes, labels, strict=True))
            nx.add_path(graph, nodes, label="0")
        return graph

    assert sign(chains(("a", "b"), ("c", "d"))) != sign(chains(("a", "d"), ("c", "b")))
    assert sign(chains(("a", "b"), ("c", "d"))) == sign(chains(("c", "d"), ("a", "b")))


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


def test_running_out_of_counters_is_no_silent_merge() -> None:
    """Where each signature in turn is held by another operation, nothing is returned."""
    with pytest.raises(AssertionError, match="more than 99 operations share the hash"):
        resolve(_graph([0, 1, 2, 3, 4, 5]), lambda _: _graph([0, 1, 2], [3, 4, 5]))
