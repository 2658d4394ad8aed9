from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from passes import Dim, Origin, PassError, name_origins
from passes.graph import shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Capture = Callable[..., CapturedGraph]


class Decoder(nn.Module):
    """Embedding, merged attention projections, feed-forward and vocabulary projection, after Llama."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.q_size, self.kv_size = size, size
        self.embed = nn.Embedding(size, size)
        self.qkv = nn.Linear(size, 3 * size, bias=False)
        self.o = nn.Linear(size, size, bias=False)
        self.up = nn.Linear(size, size, bias=False)
        self.down = nn.Linear(size, size, bias=False)
        self.head = nn.Linear(size, size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (tokens, vocabulary)."""
        x = self.embed(ids)
        q, k, v = self.qkv(x).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        x = x + self.o(q + torch.zeros_like(q)) + (k * v).sum(-1, keepdim=True)
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x)


class Reshaped(nn.Module):
    """Sizes that both the module and the request set."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = 3

    def forward(self, x: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return (top_k * tokens, hidden), (2 * tokens, hidden) and (n, hidden)."""
        return x.repeat_interleave(self.top_k, 0), torch.cat([x, x]), x[:n] * 2


class Positions(nn.Module):
    """A table of positions that fixes the request's length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 6, 8)."""
        return x + self.table


class Double(nn.Module):
    """Element-wise work on any tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x + x


def _shapes(captured: CapturedGraph) -> dict[str, list[Dim]]:
    """Return the named dimensions of each parameter and argument of a graph, by source."""
    origins = name_origins(captured)
    nodes = {node.name: node for node in captured.graph.nodes}
    return {text: [origins.dim(d) for d in shape_of(nodes[name]) or ()] for name, text in captured.placeholders.items()}


def _parameter(name: str) -> str:
    return f"L['self']._modules['{name}']._parameters['weight']"


@pytest.fixture(scope="module")
def equal_sizes(capture: Capture) -> dict[str, list[Dim]]:
    """Return the dimensions of a decoder whose hidden, query, key, inner and vocabulary sizes are all 16."""
    return _shapes(capture(Decoder(), torch.ones(5, dtype=torch.int64), request_dims={"ids": ("num_tokens",)}))


def test_equal_values_keep_their_origins(equal_sizes: dict[str, list[Dim]]) -> None:
    """Hidden, query, inner and vocabulary sizes of one value stay five different dimensions."""
    vocabulary, hidden = equal_sizes[_parameter("embed")]
    query = equal_sizes[_parameter("o")][1]
    inner = equal_sizes[_parameter("down")][1]
    logits = equal_sizes[_parameter("head")][0]
    dims = [hidden, query, inner, vocabulary, logits]
    assert {d.value for d in dims} == {16}
    assert len({d.expr for d in dims}) == 5


def test_what_operators_make_equal_is_one_dimension(equal_sizes: dict[str, list[Dim]]) -> None:
    """The hidden size is the same expression wherever the model's own operators require it."""
    uses = [("embed", 1), ("qkv", 1), ("o", 0), ("up", 1), ("down", 0), ("head", 1)]
    assert len({equal_sizes[_parameter(name)][axis].expr for name, axis in uses}) == 1


def test_a_merged_width_is_an_expression(equal_sizes: dict[str, list[Dim]]) -> None:
    """The merged projection's width is the sum of the sizes that it is split into."""
    width = equal_sizes[_parameter("qkv")][0]
    assert (str(width.expr), width.origin, width.value) == ("2*kv_size + q_size", Origin.CONFIG, 48)


def test_every_dimension_has_an_origin(capture: Capture) -> None:
    """Each dimension of each tensor is config with a value, or request or mixed without."""
    captured = capture(Decoder(), torch.ones(5, dtype=torch.int64))
    origins = name_origins(captured)
    dims = [origins.dim(size) for node in captured.graph.nodes for size in shape_of(node) or ()]
    assert {d.origin for d in dims} == {Origin.CONFIG, Origin.REQUEST}
    assert all((d.value is not None) == (d.origin is Origin.CONFIG) for d in dims)


def test_request_dims_are_named(equal_sizes: dict[str, list[Dim]]) -> None:
    """A told name is taken for the argument's dimension."""
    assert [(str(d.expr), d.origin) for d in equal_sizes["L['ids']"]] == [("num_tokens", Origin.REQUEST)]


def test_request_dims_have_default_names(capture: Capture) -> None:
    """Without a told name, or with None, a dimension is named by argument and axis."""
    shapes = _shapes(capture(Double(), torch.ones(5, 7), request_dims={"x": (None, "width")}))
    assert [[str(d.expr) for d in shape] for shape in shapes.values()] == [["x.size(0)", "width"]]


def test_a_size_from_both_sides_is_mixed(capture: Capture) -> None:
    """A product with an attribute and a literal multiple are mixed; an integer argument is a request dimension."""
    captured = capture(Reshaped(), torch.ones(5, 7), 4, request_dims={"x": ("num_tokens", "width")})
    origins = name_origins(captured)
    (output,) = (node for node in captured.graph.nodes if node.op == "output")
    dims = [origins.dim((shape_of(node) or ())[0]) for node in output.args[0]]
    assert [(str(d.expr), d.origin) for d in dims] == [
        ("num_tokens*top_k", Origin.MIXED),
        ("2*num_tokens", Origin.MIXED),
        ("n", Origin.REQUEST),
    ]


def test_a_request_size_that_the_module_fixes_is_config(capture: Capture) -> None:
    """An argument's dimension that must equal a parameter's is configured."""
    shapes = _shapes(capture(Positions(), torch.ones(3, 6, 8)))
    assert [(str(d.expr), d.value) for d in shapes["L['x']"]] == [("x.size(0)", None), ("table.size(0)", 6), ("table.size(1)", 8)]


def test_chunks_of_a_width_are_fractions(capture: Capture) -> None:
    """A width that is cut in three and rounded up, as `chunk` does it, is three times the part it must equal."""

    class Chunked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            return x + q + k + v

    shapes = _shapes(capture(Chunked(), torch.ones(5, 8)))
    assert [str(d.expr) for d in shapes[_parameter("qkv")]] == ["3*qkv.weight.size(1)", "qkv.weight.size(1)"]


def test_a_named_dimension_must_not_be_a_constant(capture: Capture) -> None:
    """A request dimension of size 1, which torch takes for a constant, is refused by name."""
    captured = capture(Double(), torch.ones(1, 7), request_dims={"x": ("num_tokens",)})
    with pytest.raises(
        PassError, match=r"dimension 0 of x, named 'num_tokens', had the size 1 in this call, .*; call the module with"
    ):
        name_origins(captured)


def test_a_symbol_without_source_is_refused(capture: Capture) -> None:
    """An expression over a symbol that no source explains is an error, never a guess."""
    import sympy

    origins = name_origins(capture(Double(), torch.ones(5, 7)))
    with pytest.raises(PassError, match=r"origins: .*'u0'.*, which no source explains"):
        origins.dim(sympy.Symbol("u0") + 1)
