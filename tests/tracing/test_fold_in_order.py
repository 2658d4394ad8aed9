from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dooly.tracing import dooly_backend, fold_layers_in_order, followed_kinds, tracing
from passes import COMPILED_PIPELINE, analyse


class State(nn.Module):
    """Stands for attention."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return torch.tanh(x)


class Layer(nn.Module):
    """A layer of some width."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.state, self.down = nn.Linear(8, width), State(), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return x + self.down(self.state(self.up(x)))


class Model(nn.Module):
    """Layers of some widths, one after the other."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, widths))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_layers_are_told_apart_by_the_one_before() -> None:
    """The first layer is a kind of its own, and so is what follows it."""
    assert followed_kinds(Model(8, 8, 8, 8, 8)) == {"layers": [[0], [1], [2, 3, 4]]}
    assert followed_kinds(Model(8, 4, 8, 4, 8, 4)) == {"layers": [[0], [1], [2, 4], [3, 5]]}


def test_leading_layers_stand_for_all() -> None:
    """Counts add up to the layers, and a layer that runs twice of its kind takes part of the count."""
    with fold_layers_in_order(Model(8, 8, 8, 8, 8)) as counts:
        assert counts == {"layers.0": 1, "layers.1": 1, "layers.2": 3}
    with fold_layers_in_order(Model(8, 4, 8, 4, 8)) as counts:
        # Layer 3 shows 4 behind 8 that is not the first, and the model ends with 8: layer 4 runs too.
        assert counts == {"layers.0": 1, "layers.1": 1, "layers.2": 1, "layers.3": 1, "layers.4": 1}


def _pieces(model: nn.Module, num_layers: int) -> list[tuple[str, str]]:
    states = {f"layers.{i}.state": {"kind": "State"} for i in range(num_layers)}
    with tracing() as captures:
        torch.compile(model, backend=partial(dooly_backend), fullgraph=True)(torch.ones(3, 8))
    operations = analyse(captures[0].describe(stateful=states), COMPILED_PIPELINE).operations
    return [(op.signature, op.operation.module) for op in operations if op.operation.is_piece]


def test_a_folded_model_has_the_pieces_of_the_whole() -> None:
    """Each piece of the whole model is among those of the folded one, as often as its counts say, the last one included."""
    model = Model(8, 4, 8, 4, 8, 4, 8, 4)
    whole = [signature for signature, _ in _pieces(model, 8)]
    torch.compiler.reset()
    with fold_layers_in_order(model) as counts:
        folded = _pieces(model, 8)
    times = [counts.get(path.rpartition(".")[0], 1) for _, path in folded]
    assert len(folded) < len(whole) == sum(times)
    assert sorted(whole) == sorted(s for (s, _), n in zip(folded, times, strict=True) for _ in range(n))


class Pair(nn.Module):
    """Two lists of layers, one after the other."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.a, self.b = (nn.ModuleList(Layer() for _ in range(number)) for number in (first, second))

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        for layer in (*self.a, *self.b):
            x = layer(x)
        return x


@pytest.mark.parametrize(("first", "second"), [(6, 1), (1, 6), (6, 5)])
def test_each_list_recalls_its_own(first: int, second: int) -> None:
    """Of two lists, each folds by itself, or not: the second's input is what the first's last layer that runs returned."""
    model, x = Pair(first, second), torch.ones(3, 8)
    expected = x
    for layer in (*model.a[:3], *model.b[:3]):
        expected = layer(expected)
    with fold_layers_in_order(model) as counts:
        assert torch.equal(model(x), expected)
    assert [sum(n for path, n in counts.items() if path.startswith(name)) for name in "ab"] == [first, second]
    assert all("forward" not in vars(layer) for layer in (*model.a, *model.b))


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_a_folded_model_keeps_no_output_beside_its_own(num_layers: int) -> None:
    """What later layers take from the last that runs is no result of the forward, and afterwards all layers run again."""
    model = Model(*[8] * num_layers)
    torch.compiler.reset()
    with fold_layers_in_order(model), tracing() as captures:
        torch.compile(model, backend=partial(dooly_backend), fullgraph=True)(torch.ones(3, 8))
    (output,) = (node for node in captures[0].graph.nodes if node.op == "output")
    assert len(output.args[0]) == 1
    assert all("forward" not in vars(layer) for layer in model.layers)
