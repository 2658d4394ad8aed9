from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
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


class GatedMlp(nn.Module):
    """A merged gate and up projection, split in two."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        merged = self.gate_up(x)
        half = merged.shape[-1] // 2
        return self.down(F.silu(merged[..., :half]) * merged[..., half:])


class Attention(nn.Module):
    """Attention over the tokens themselves, with merged projections and grouped heads."""

    def __init__(self, hidden: int, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.q_size, self.kv_size = num_heads * head_dim, num_kv_heads * head_dim
        self.qkv = nn.Linear(hidden, self.q_size + 2 * self.kv_size, bias=False)
        self.o = nn.Linear(self.q_size, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, hidden)."""
        q, k, v = self.qkv(x).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        q = q.view(-1, self.num_kv_heads, self.num_heads // self.num_kv_heads, self.head_dim)
        k, v = (t.view(-1, self.num_kv_heads, self.head_dim) for t in (k, v))
        weights = torch.softmax(torch.einsum("qhgd,khd->hgqk", q, k), dim=-1)
        return self.o(torch.einsum("hgqk,khd->qhgd", weights, v).reshape(-1, self.q_size))


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


class Borders(nn.Module):
    """Views before and behind what computes."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.heads = 2
        self.proj = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (heads, tokens, hidden / heads)."""
        y: Tensor = self.proj(x.t())
        return y.view(-1, self.heads, 4).transpose(0, 1)


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


class OwnViews(nn.Module):
    """Own code around a leaf whose pieces are joined by views alone."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (8, tokens)."""
        left, right = torch.relu(x).t(), torch.tanh(x).t()
        return left - right + self.act(x).t()


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


def test_a_merged_projection_is_twice_the_inner_size(table: Table) -> None:
    """The halves of a merged projection come out as half its width, and the module's own code as one operation."""
    assert table(GatedMlp(8, 32), torch.ones(3, 8)) == cleandoc("""
        gate_up Linear: t mm
            in  *[2*down.weight.size(1)=64, gate_up.weight.size(1)=8]
            in  [x.size(0), gate_up.weight.size(1)=8]
            out [x.size(0), 2*down.weight.size(1)=64]
        . -: silu mul
            in  [x.size(0), down.weight.size(1)=32]
            in  [x.size(0), down.weight.size(1)=32]
            out [x.size(0), down.weight.size(1)=32]
        down Linear: t mm
            in  *[down.weight.size(0)=8, down.weight.size(1)=32]
            in  [x.size(0), down.weight.size(1)=32]
            out [x.size(0), down.weight.size(0)=8]
    """)


def test_attention_reads_as_its_attributes(table: Table) -> None:
    """The merged width is an expression of query and key sizes; the own code between the projections is one operation."""
    assert table(Attention(24, 4, 2, 8), torch.ones(5, 24)) == cleandoc("""
        qkv Linear: t mm
            in  *[2*kv_size + q_size=64, qkv.weight.size(1)=24]
            in  [x.size(0), qkv.weight.size(1)=24]
            out [x.size(0), 2*kv_size + q_size=64]
        . -: clone _unsafe_view bmm view permute view _softmax unsqueeze permute permute clone _unsafe_view
                bmm view permute view clone
            in  [num_kv_heads=2, num_heads/num_kv_heads=2, x.size(0), head_dim=8, 1]
            in  [num_kv_heads=2, head_dim=8, x.size(0)]
            in  [num_kv_heads=2, x.size(0), head_dim=8]
            out [x.size(0), num_kv_heads=2, num_heads/num_kv_heads=2, head_dim=8]
        o Linear: t mm
            in  *[o.weight.size(0)=24, kv_size*num_heads/num_kv_heads=32]
            in  [x.size(0), head_dim*num_heads=32]
            out [x.size(0), o.weight.size(0)=24]
    """)


def test_own_code_splits_by_connected_piece(table: Table) -> None:
    """Residual additions before and behind the leaves are two operations of the module itself."""
    assert table(Residual(8), torch.ones(3, 8), torch.ones(3, 8)) == cleandoc("""
        . -: add
            in  [x.size(0), 8]
            in  [x.size(0), 8]
            out [x.size(0), 8]
        norm LayerNorm: native_layer_norm getitem
            in  [x.size(0), 8]
            in  *[8]
            in  *[8]
            out [x.size(0), 8]
        proj Linear: t mm
            in  *[8, 8]
            in  [x.size(0), 8]
            out [x.size(0), 8]
        . -: add
            in  [x.size(0), 8]
            in  [x.size(0), 8]
            out [x.size(0), 8]
    """)


def test_views_at_the_border_belong_to_nothing(table: Table) -> None:
    """Views before and behind a leaf leave it as it is, and make no operation of their own."""
    assert table(Borders(8), torch.ones(8, 3)) == cleandoc("""
        proj Linear: t mm
            in  *[proj.weight.size(0)=8, proj.weight.size(1)=8]
            in  [x.size(1), proj.weight.size(1)=8]
            out [x.size(1), proj.weight.size(0)=8]
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
            in  [args[0].size(0), 8]
            in  *[8]
            in  *[8]
            out [args[0].size(0), 8]
    """)


def test_views_inside_own_code_stay(table: Table) -> None:
    """Views between computing nodes belong to the operation: they say which result goes where."""
    assert table(OwnViews(), torch.ones(3, 8)) == cleandoc("""
        . -: relu t tanh t sub add
            in  [x.size(0), x.size(1)]
            in  [x.size(1), x.size(0)]
            out [x.size(1), x.size(0)]
        act GELU: gelu
            in  [x.size(0), x.size(1)]
            out [x.size(0), x.size(1)]
    """)


def test_swapped_operands_behind_views_are_another_operation(signatures: Callable[..., dict[str, list[str]]]) -> None:
    """A difference with its sides swapped is another operation, also where only views feed it."""

    class Swapped(OwnViews):
        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.relu(x).t(), torch.tanh(x).t()
            return right - left + self.act(x).t()

    assert signatures(OwnViews(), torch.ones(3, 8))[""] != signatures(Swapped(), torch.ones(3, 8))[""]


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

    captured = capture(Attention(24, 4, 2, 8), torch.ones(5, 24))
    before = (str(captured.graph), [dict(node.meta) for node in captured.graph.nodes])
    analyse(captured)
    assert (str(captured.graph), [dict(node.meta) for node in captured.graph.nodes]) == before
