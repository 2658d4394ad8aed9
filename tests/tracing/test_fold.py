from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dooly.tracing import dooly_backend, fold_layers, layer_kinds, trace, tracing
from passes import analyse


class Layer(nn.Module):
    """A layer that knows its number, its name and a window."""

    def __init__(self, index: int, *, window: int | None = None, width: int = 8, cache: str = "fp8_e4m3") -> None:
        super().__init__()
        self.layer_idx, self.window, self.cache = index, window, cache
        self.prefix = f"model.layers.{index}.attn"
        self.proj = nn.Linear(8, width)
        self.state = nn.Identity()
        self.state.slopes = [index]


class Stacked(Layer):
    """A layer that runs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        y: Tensor = self.proj(x)
        return y


class Model(nn.Module):
    """Some layers in a list."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(8)


def test_equal_layers_fold_into_one_behind_the_first() -> None:
    """The first layer stands alone, the rest are one kind; number, name and the 4 in `fp8_e4m3` tell nothing."""
    assert layer_kinds(Model(*(Layer(i) for i in range(6)))) == {"body.layers": [[0], [1, 2, 3, 4, 5]]}


@pytest.mark.parametrize(
    ("changed", "described"),
    [(Layer(2, window=4), "an attribute"), (Layer(2, width=12), "a size"), (Layer(2, cache="bf16"), "a name")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_differs_is_another_kind(changed: Layer, described: str) -> None:
    """An attribute, a parameter's size or a name that differs makes another kind."""
    layers = [changed if i == 2 else Layer(i) for i in range(5)]
    assert layer_kinds(Model(*layers)) == {"body.layers": [[0], [1, 3, 4], [2]]}, described


def test_an_element_type_and_a_class_are_other_kinds() -> None:
    """Layers of another element type or class are other kinds."""

    class Other(Layer):
        pass

    layers = [Layer(0), Layer(1), Layer(2).to(torch.bfloat16), Other(3), Layer(4), Other(5)]
    assert layer_kinds(Model(*layers)) == {"body.layers": [[0], [1, 4], [2], [3, 5]]}


def test_code_and_collections_tell_kinds_apart() -> None:
    """Layers that run other code, or hold other numbers in a list or under a private name, are other kinds."""

    class Acting(Layer):
        def __init__(self, index: int, act: object, *sizes: int) -> None:
            super().__init__(index)
            self.act, self._sizes, self.methods = act, list(sizes), [self.forward]

    layers = [Acting(i, torch.relu, 4, 5) for i in range(4)]
    layers += [Acting(4, torch.tanh, 4, 5), Acting(5, torch.relu, 4, 6), Acting(6, lambda x: x @ x.T, 4, 5)]
    assert layer_kinds(Model(*layers)) == {"body.layers": [[0], [1, 2, 3], [4], [5], [6]]}


def test_a_module_that_stands_twice_runs_twice() -> None:
    """One module in several places of a list is captured at each call, and none of it is folded."""
    shared = Stacked(0)
    model = Chain(shared, shared, shared)
    with fold_layers(model) as counts, tracing() as captures:
        torch.compile(model, backend=partial(dooly_backend), fullgraph=True)(torch.randn(5, 8))
    runs = [op for op in analyse(captures[0].describe()).operations if op.operation.module_class == "Linear"]
    assert len(runs) * counts["body.layers.0"] == 3


def test_alternating_kinds_keep_their_order() -> None:
    """Kinds come in the order of their first layer, so that a folded model runs them as the whole one does."""
    layers = [Layer(i, window=4 if i % 2 else None) for i in range(6)]
    assert layer_kinds(Model(*layers)) == {"body.layers": [[0], [1, 3, 5], [2, 4]]}


def test_numbers_that_some_kinds_alone_keep_count_too() -> None:
    """Layers of one kind fold although the others do not know their number, and although a size of theirs is one's number."""

    class Recurrent(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.layer_number, self.shapes = index, "(4, 8)"

    layers = [Layer(i, window=4) if i % 3 == 2 else Recurrent(i) for i in range(9)]
    assert layer_kinds(Model(*layers)) == {"body.layers": [[0], [1, 3, 4, 6, 7], [2, 5, 8]]}


def test_state_outside_the_module_counts() -> None:
    """What only the engine knows of a module, such as its window, tells kinds apart."""
    model = Model(*(Layer(i) for i in range(4)))

    def state_of(module: nn.Module) -> dict[str, object] | None:
        return {"window": model.body.layers[3] is not module} if isinstance(module, Layer) else None

    assert layer_kinds(model, state_of) == {"body.layers": [[0], [1, 2], [3]]}


def test_layers_that_all_differ_are_left_alone() -> None:
    """A list of different modules is no repetition: each is a kind of its own, and nothing is folded."""
    model = Model(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8))
    assert layer_kinds(model) == {"body.layers": [[0], [1], [2]]}
    with fold_layers(model) as counts:
        assert counts == dict.fromkeys(("body.layers.0", "body.layers.1", "body.layers.2"), 1)


def test_two_equal_layers_are_two_kinds() -> None:
    """The first layer stands alone, so a model reduced to two layers shows each kind once."""
    assert layer_kinds(Model(nn.Linear(8, 8), nn.Linear(8, 8))) == {"body.layers": [[0], [1]]}
    assert layer_kinds(Model(nn.Linear(8, 8))) == {"body.layers": [[0]]}


class Chain(Model):
    """Layers that run one after the other, by number."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        for index in range(len(self.body.layers)):
            x = self.body.layers[index](x) if self.body.layers[index].window is None else x
        normed: Tensor = self.norm(x)
        return normed


class Scaled(nn.Module):
    """A layer that counts its calls."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.num_calls = factor, 0

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        self.num_calls += 1
        return self.factor * x


def test_one_layer_of_each_kind_runs() -> None:
    """Within the scope a repeated layer returns what its kind returned; counts add up; afterwards all run again."""
    layers = [Scaled(3.0 if i % 2 else 2.0) for i in range(6)]
    model = nn.Module()
    model.layers = nn.ModuleList(layers)
    x = torch.ones(2, 8)
    with fold_layers(model) as counts:
        outputs = [layer(x) for layer in model.layers]
        assert counts == {"layers.0": 1, "layers.1": 3, "layers.2": 2}
    assert [float(y.flatten()[0]) for y in outputs] == [2, 3, 2, 3, 2, 3]
    assert [layer.num_calls for layer in layers] == [1, 1, 1, 0, 0, 0]
    assert [float(layer(x).sum()) for layer in model.layers] == [32, 48, 32, 48, 32, 48]
    assert [layer.num_calls for layer in layers] == [2, 2, 2, 1, 1, 1]


def test_layers_by_number_stay_in_place() -> None:
    """A model that takes its layers by number and reads their attributes is captured with each kind once."""
    model = Chain(*(Stacked(i) for i in range(6)))
    with fold_layers(model) as counts, tracing() as captures:
        torch.compile(model, backend=partial(dooly_backend), fullgraph=True)(torch.randn(5, 8))
    (capture,) = captures
    modules = {op.operation.module for op in analyse(capture.describe()).operations}
    assert {m for m in modules if "layers" in m} == {"body.layers.0.proj", "body.layers.1.proj"}
    assert counts == {"body.layers.0": 1, "body.layers.1": 5}


def test_a_layer_that_only_repeats_follow_is_captured() -> None:
    """The third layer feeds a repetition of the second alone, and is captured all the same."""
    model = Chain(*(Stacked(i, cache="b" if i == 2 else "a") for i in range(4)))
    with fold_layers(model) as counts, tracing() as captures:
        torch.compile(model, backend=partial(dooly_backend), fullgraph=True)(torch.randn(5, 8))
    modules = {op.operation.module for op in analyse(captures[0].describe()).operations}
    assert {f"body.layers.{i}.proj" for i in range(3)} <= modules
    assert counts == {"body.layers.0": 1, "body.layers.1": 2, "body.layers.2": 1}


def test_layers_are_put_back_after_an_error() -> None:
    """An error within the scope leaves the model as it was."""
    model = Model(*(Layer(i) for i in range(4)))
    scope = fold_layers(model)
    scope.__enter__()
    assert "forward" in vars(model.body.layers[3])
    with pytest.raises(RuntimeError, match="stop"):
        scope.gen.throw(RuntimeError("stop"))
    assert not any("forward" in vars(layer) or layer._forward_hooks for layer in model.body.layers)


def test_torchs_own_stacks_fold() -> None:
    """One layer of PyTorch's encoder is traced, and counts for all of them."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 3)
    traced = trace(nn.Sequential(encoder).eval())
    traced(torch.randn(3, 7, 32))
    assert {op.placements for op in traced.traced.operations if op.name == "linear1"} == {(("0.layers.0.linear1", 3),)}


def test_lists_that_share_layers_fold_once() -> None:
    """Parts of a list of layers, kept as lists of their own, go by its counts, and each layer is itself again afterwards."""
    model = Model(*(Stacked(i) for i in range(6)))
    model.tail = nn.ModuleList(model.body.layers[3:])
    with fold_layers(model) as counts:
        assert counts == {"body.layers.0": 1, "body.layers.1": 5, "tail.0": 1, "tail.1": 1, "tail.2": 1}
        assert sum("forward" in vars(layer) for layer in model.body.layers) == 4
    assert not any("forward" in vars(layer) for layer in model.body.layers)
