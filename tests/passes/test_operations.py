from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Table = Callable[..., str]


class Mlp(nn.Module):
    """Two projections with an activation between."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden, inner, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        return self.down(self.act(self.up(x)))


class Residual(nn.Module):
    """Residual additions in the module's own code, around two leaves."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum normed and projected, and the sum."""
        total = x + residual
        return self.proj(self.norm(total)) + total, total


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.proj = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return self.proj(self.act(self.proj(x)))


class Embed(nn.Module):
    """A table looked up by token."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 8)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return self.table(ids)


def test_a_leaf_call_is_an_operation(table: Table) -> None:
    """Each leaf of an MLP is one operation, and the transposed weight belongs to it."""
    assert table(Mlp(8, 32), torch.ones(3, 8)) == cleandoc("""
        up Linear: t mm
            in  *[up.weight.size(0)=32, up.weight.size(1)=8]
            in  [x.size(0), up.weight.size(1)=8]
            out [x.size(0), up.weight.size(0)=32]
        act GELU: gelu
            in  [x.size(0), up.weight.size(0)=32]
            out [x.size(0), up.weight.size(0)=32]
        down Linear: t mm
            in  *[down.weight.size(0)=8, up.weight.size(0)=32]
            in  [x.size(0), up.weight.size(0)=32]
            out [x.size(0), down.weight.size(0)=8]
    """)


def test_own_code_splits_by_connected_piece(table: Table) -> None:
    """Residual additions before and behind the leaves are two operations of the module itself."""
    assert table(Residual(8), torch.ones(3, 8), torch.ones(3, 8)) == cleandoc("""
        . -: add
            in  [x.size(0), norm.bias.size(0)=8]
            in  [x.size(0), norm.bias.size(0)=8]
            out [x.size(0), norm.bias.size(0)=8]
        norm LayerNorm: native_layer_norm getitem
            in  [x.size(0), norm.bias.size(0)=8]
            in  *[norm.bias.size(0)=8]
            in  *[norm.bias.size(0)=8]
            out [x.size(0), norm.bias.size(0)=8]
        proj Linear: t mm
            in  *[norm.bias.size(0)=8, norm.bias.size(0)=8]
            in  [x.size(0), norm.bias.size(0)=8]
            out [x.size(0), norm.bias.size(0)=8]
        . -: add
            in  [x.size(0), norm.bias.size(0)=8]
            in  [x.size(0), norm.bias.size(0)=8]
            out [x.size(0), norm.bias.size(0)=8]
    """)


def test_each_call_is_an_operation(table: Table) -> None:
    """A module called twice runs two operations."""
    assert table(Twice(), torch.ones(3, 8)) == cleandoc("""
        proj Linear: t mm
            in  *[proj.weight.size(0)=8, proj.weight.size(0)=8]
            in  [x.size(0), proj.weight.size(0)=8]
            out [x.size(0), proj.weight.size(0)=8]
        act ReLU: relu
            in  [x.size(0), proj.weight.size(0)=8]
            out [x.size(0), proj.weight.size(0)=8]
        proj Linear: t mm
            in  *[proj.weight.size(0)=8, proj.weight.size(0)=8]
            in  [x.size(0), proj.weight.size(0)=8]
            out [x.size(0), proj.weight.size(0)=8]
    """)


def test_an_embedding_reads_its_table(table: Table) -> None:
    """A lookup takes the table and the indices."""
    assert table(Embed(), torch.ones(3, dtype=torch.int64)) == cleandoc("""
        table Embedding: embedding
            in  *[table.weight.size(0)=32, table.weight.size(1)=8]
            in  int64[ids.size(0)]
            out [ids.size(0), table.weight.size(1)=8]
    """)


def test_a_layer_norm_has_one_result(table: Table) -> None:
    """Of an operator with several results, those that nobody reads are no outputs."""
    assert table(nn.Sequential(nn.LayerNorm(8)), torch.ones(3, 8)) == cleandoc("""
        0 LayerNorm: native_layer_norm getitem
            in  [args[0].size(0), 0.bias.size(0)=8]
            in  *[0.bias.size(0)=8]
            in  *[0.bias.size(0)=8]
            out [args[0].size(0), 0.bias.size(0)=8]
    """)


def test_a_stateful_module_is_one_operation(table: Table) -> None:
    """All that runs inside a stateful module is one operation, its leaves included."""
    block = nn.Sequential(nn.Linear(8, 8), Mlp(8, 32))
    assert table(block, torch.ones(3, 8), stateful={"1": {"kind": "Mlp"}}) == cleandoc("""
        0 Linear: t addmm
            in  *[0.bias.size(0)=8, 0.weight.size(1)=8]
            in  *[0.bias.size(0)=8]
            in  [args[0].size(0), 0.weight.size(1)=8]
            out [args[0].size(0), 0.bias.size(0)=8]
        1 Mlp: t mm gelu t mm
            in  *[up.weight.size(0)=32, 0.bias.size(0)=8]
            in  [args[0].size(0), 0.bias.size(0)=8]
            in  *[down.weight.size(0)=8, up.weight.size(0)=32]
            out [args[0].size(0), down.weight.size(0)=8]
    """)


def test_a_graph_is_left_as_it_was(capture: Callable[..., CapturedGraph]) -> None:
    """The passes do not write to the captured graph."""
    from passes import analyse

    captured = capture(Mlp(8, 32), torch.ones(3, 8))
    before = (str(captured.graph), [dict(node.meta) for node in captured.graph.nodes])
    analyse(captured)
    assert (str(captured.graph), [dict(node.meta) for node in captured.graph.nodes]) == before
