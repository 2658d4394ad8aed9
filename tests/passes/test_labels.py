from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import sympy
import torch
from torch import Tensor, nn

from passes import analyse, name_origins, split_operations
from passes.graph import shape_of
from passes.labels import label_classes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from passes import CapturedGraph

    Capture = Callable[..., CapturedGraph]


class FeedForward(nn.Module):
    """A feed-forward after an embedding; attribute names that fields and arguments have too."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.hidden_size, self.rows = size, 2
        self.embed = nn.Embedding(size, size)
        self.up = nn.Linear(size, size, bias=False)
        self.down = nn.Linear(size, size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (rows, tokens, hidden)."""
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(x)))
        return x.new_zeros(self.rows, 1, self.hidden_size) + x


def _configured(captured: CapturedGraph, configured: Mapping[str, str], **values: int) -> CapturedGraph:
    """Return a graph with sizes told as text over fields of the configuration."""
    from torch.utils._sympy.functions import FloorDiv

    fields = {name: sympy.Symbol(name, integer=True, positive=True) for name in values}
    exprs = {path: sympy.sympify(text, locals={**fields, "div": FloorDiv}) for path, text in configured.items()}
    return replace(captured, configured=exprs, config_values={fields[n]: v for n, v in values.items()})


def _weights(captured: CapturedGraph) -> dict[str, str]:
    """Return the dimensions of each parameter as text."""
    origins = name_origins(captured)
    nodes = {node.name: node for node in captured.graph.nodes}
    return {
        text.split("'")[-4]: ", ".join(str(origins.dim(d).expr) for d in shape_of(nodes[name]) or ())
        for name, text in captured.placeholders.items()
        if "_parameters" in text
    }


@pytest.fixture(scope="module")
def captured(capture: Capture) -> CapturedGraph:
    """Return the graph of the feed-forward, whose sizes are all 16."""
    return capture(FeedForward(), torch.ones(5, dtype=torch.int64), request_dims={"ids": ("num_tokens",)})


def test_without_a_configuration_the_module_names_its_sizes(captured: CapturedGraph) -> None:
    """Attributes come first, then parameter sizes."""
    assert _weights(captured) == {
        "embed": "embed.weight.size(0), hidden_size",
        "up": "up.weight.size(0), hidden_size",
        "down": "hidden_size, up.weight.size(0)",
    }


def test_a_field_names_its_whole_class(captured: CapturedGraph) -> None:
    """What the configuration says of one symbol holds for all that tracing proved equal to it, and for no other of its value."""
    told = _configured(
        captured, {"up.weight.size(0)": "inner", "down.weight.size(0)": "heads*head_dim"}, inner=16, heads=4, head_dim=4
    )
    assert _weights(told) == {
        "embed": "embed.weight.size(0), head_dim*heads",
        "up": "inner, head_dim*heads",
        "down": "head_dim*heads, inner",
    }


def test_the_simplest_of_several_expressions_is_taken(captured: CapturedGraph) -> None:
    """Fewest fields, then the shortest text, then the first in the alphabet, in whatever order they were told."""
    told = {
        "up.weight.size(1)": "heads*head_dim",
        "embed.weight.size(1)": "width",
        "down.weight.size(0)": "dim_z",
        "hidden_size": "dim_b",
    }
    for configured in (told, dict(reversed(told.items()))):
        graph = _configured(captured, configured, heads=4, head_dim=4, width=16, dim_z=16, dim_b=16)
        assert _weights(graph)["down"] == "dim_b, up.weight.size(0)"


def test_divisions_without_a_rest_are_fractions(captured: CapturedGraph) -> None:
    """Rounding up to what needs no rounding vanishes, a division that leaves a rest stays."""
    padded = {"embed.weight.size(0)": "64*div(v + 63, 64)", "up.weight.size(0)": "n*div(w, n)", "hidden_size": "div(u, m)"}
    assert _weights(_configured(captured, padded, v=64, n=2, w=16, u=32, m=2)) == {
        "embed": "v, u/m",
        "up": "w, u/m",
        "down": "u/m, w",
    }
    rest = _weights(_configured(captured, padded, v=60, n=4, w=17, u=33, m=2))
    assert rest == {
        "embed": "64*(((v + 63)//64)), (u//m)",
        "up": "n*((w//n)), (u//m)",
        "down": "(u//m), n*((w//n))",
    }


def test_names_of_fields_arguments_and_attributes_stay_apart(captured: CapturedGraph) -> None:
    """A field named like a request dimension, and an attribute named like a field, are written with where they come from."""
    told = _configured(
        captured, {"up.weight.size(0)": "num_tokens", "embed.weight.size(0)": "hidden_size"}, num_tokens=16, hidden_size=16
    )
    assert _weights(told) == {
        "embed": "hidden_size, self.hidden_size",
        "up": "config.num_tokens, self.hidden_size",
        "down": "self.hidden_size, config.num_tokens",
    }
    origins = name_origins(told)
    assert {str(s) for s in origins.requests} == {"num_tokens"}


def test_sizes_that_attributes_name_are_no_parameter_sizes(captured: CapturedGraph) -> None:
    """Only classes that are nothing but parameter sizes give way to other expressions."""
    classes = {symbol: [symbol] for symbol in captured.sources}
    assert "hidden_size" not in map(str, label_classes(classes, captured).sizes)
    assert "embed.weight.size(0)" in map(str, label_classes(classes, captured).sizes)
    told = _configured(captured, {"down.weight.size(1)": "inner"}, inner=16)
    assert "inner" not in map(str, label_classes(classes, told).sizes)


def test_signatures_do_not_depend_on_names(captured: CapturedGraph) -> None:
    """The same graph has the same signatures with a configuration and without; its costs speak of the fields."""
    told = _configured(captured, {"up.weight.size(0)": "inner", "hidden_size": "hidden"}, inner=16, hidden=16)
    plain, named = analyse(captured), analyse(told)
    assert [op.signature for op in plain.operations] == [op.signature for op in named.operations]
    (up,) = (op for op in named.operations if op.operation.module == "up")
    assert str(up.cost.flops) == "2*hidden*inner*num_tokens"
    assert len(split_operations(told, named.origins)) == len(named.operations)
