from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Table = Callable[..., str]


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
