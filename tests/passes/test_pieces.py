from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from passes import COMPILED_PIPELINE, PassError, analyse, name_origins, split_pieces
from passes.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph, Operation

    Capture = Callable[..., CapturedGraph]


class State(nn.Module):
    """What an engine calls stateful; what it computes does not matter."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        return torch.tanh(x) + 1


class Layer(nn.Module):
    """A projection up to the state, and one behind it, added to what came in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden, hidden, bias=False)
        self.state = State()
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        return x + self.out(self.state(self.proj(x)))


class Model(nn.Module):
    """Three layers between a table and a norm."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.table = nn.Embedding(32, hidden)
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(3))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


STATES = {f"layers.{i}.state": {"kind": "State"} for i in range(3)}


@pytest.fixture(scope="module")
def captured(capture: Capture) -> CapturedGraph:
    """The graph of the model, whose states are stateful."""
    return capture(Model(), torch.arange(5), stateful=STATES)


def _row(operation: Operation) -> str:
    kind = "piece" if operation.is_piece else operation.module_class
    return f"{operation.module or '.'} {kind}: {' '.join(map(operator_name, operation.nodes))}"


def test_all_between_two_stateful_operations_is_a_piece(captured: CapturedGraph) -> None:
    """A piece spans modules and the end of one layer and the begin of the next; it goes by the state that it runs up to."""
    rows = [_row(operation) for operation in split_pieces(captured, name_origins(captured))]
    assert "\n".join(rows) == cleandoc("""
        layers.0.state piece: embedding t mm
        layers.0.state State: tanh add
        layers.1.state piece: t mm add t mm
        layers.1.state State: tanh add
        layers.2.state piece: t mm add t mm
        layers.2.state State: tanh add
        . piece: t mm add native_layer_norm getitem
    """)


def test_a_piece_has_no_state_of_the_module_that_it_runs_up_to(captured: CapturedGraph) -> None:
    """Only the state's own operation is stateful."""
    stateful = [operation.stateful for operation in split_pieces(captured, name_origins(captured))]
    assert stateful == [None, {"kind": "State"}] * 3 + [None]


def test_pieces_of_equal_layers_have_one_signature(captured: CapturedGraph) -> None:
    """The pieces between the layers are one operation, which neither the first nor the last piece is."""
    found = [op.signature for op in analyse(captured, COMPILED_PIPELINE).operations if op.operation.is_piece]
    first, second, third, last = found
    assert second == third
    assert len({first, second, last}) == 3


def test_another_size_makes_another_piece(capture: Capture, captured: CapturedGraph) -> None:
    """A piece's configured sizes enter its signature by value; more tokens do not."""

    def pieces(graph: CapturedGraph) -> list[str]:
        return [op.signature for op in analyse(graph, COMPILED_PIPELINE).operations if op.operation.is_piece]

    known = pieces(captured)
    assert pieces(capture(Model(), torch.arange(9), stateful=STATES)) == known
    assert not set(pieces(capture(Model(16), torch.arange(5), stateful=STATES))) & set(known)


def test_work_and_parameters_of_a_piece_add_up(captured: CapturedGraph) -> None:
    """A piece costs what its products do, and reads all of their weights."""
    analysis = analyse(captured, COMPILED_PIPELINE)
    between = analysis.operations[2]
    parameters = [spec.parameter for spec in between.operation.inputs if spec.is_parameter]
    assert parameters == ["layers.0.out.weight", "layers.1.proj.weight"]
    assert str(analysis.origins.by_value(between.cost.flops)) == f"{2 * 2 * 8 * 8}*ids.size(0)"


def test_without_state_there_are_no_pieces(capture: Capture) -> None:
    """A graph in which nothing is stateful has nothing that bounds pieces."""
    captured = capture(Model(), torch.arange(5))
    with pytest.raises(PassError, match="pieces: the graph has no stateful operation"):
        split_pieces(captured, name_origins(captured))
