from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from passes import find_flow, name_origins, split_operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Flow = Callable[..., str]


@pytest.fixture(scope="module")
def flow(capture: Callable[..., CapturedGraph]) -> Flow:
    """Return a function that prints an operation a line: its place, the places that it reads from, and whether it is a result."""

    def run(module: nn.Module, *inputs: object, **told: object) -> str:
        captured = capture(module, *inputs, **told)
        operations = split_operations(captured, name_origins(captured))
        found = find_flow(captured, operations)
        rows = enumerate(zip(operations, found.feeds_from, strict=True))
        lines = (
            f"{i} {op.module or '.'} < {' '.join(map(str, read)) or '-'}{' >' * (i in found.results)}" for i, (op, read) in rows
        )
        return "\n".join(lines)

    return run


class Block(nn.Module):
    """A residual block: the sum goes around the norm and the two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 32, bias=False)
        self.down = nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        total = x + residual
        gate, inner = self.up(self.norm(total)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * inner) + total


class Sizes(nn.Module):
    """A leaf whose result says only how large another tensor is."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 12, bias=False)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (tokens, 12) and (tokens, 12)."""
        y = self.proj(x)
        return y, self.act(x[:, :1].expand(y.shape[0], 12))


class Heads(nn.Module):
    """Three results of one leaf, each read through views by another."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 2, 4)."""
        q, k, v = (part.view(-1, 2, 4) for part in self.qkv(x).split([8, 8, 8], dim=-1))
        query, key, value = (norm(part) for norm, part in zip(self.norms, (q, k, v), strict=True))
        return query * key + value


class Twice(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.proj = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        return self.proj(self.act(self.proj(x)))


def test_a_value_is_followed_through_views(flow: Flow) -> None:
    """Splits and reshapes between two operations hide neither from the other; several readers share one source."""
    assert flow(Heads(), torch.ones(5, 8)) == cleandoc("""
        0 qkv < -
        1 norms.0 < 0
        2 norms.1 < 0
        3 norms.2 < 0
        4 . < 1 2 3 >
    """)


def test_a_residual_goes_around_the_block(flow: Flow) -> None:
    """The sum feeds both the norm and the last addition, and the module's own pieces stay apart: the flow has no cycle."""
    assert flow(Block(), torch.ones(3, 8), torch.ones(3, 8)) == cleandoc("""
        0 . < -
        1 norm < 0
        2 up < 1
        3 . < 2
        4 down < 3
        5 . < 0 4 >
    """)


def test_each_call_of_a_module_stands_for_itself(flow: Flow) -> None:
    """A module called twice is two nodes, one behind the other."""
    assert flow(Twice(), torch.ones(3, 8)) == cleandoc("""
        0 proj < -
        1 act < 0
        2 proj < 1 >
    """)


def test_a_size_is_no_value(flow: Flow) -> None:
    """An operation that asks a result for its size alone does not read it."""
    assert flow(Sizes(), torch.ones(3, 8)) == cleandoc("""
        0 proj < - >
        1 act < - >
    """)


def test_a_stateful_module_is_one_node(flow: Flow) -> None:
    """What runs inside a stateful module is one node between what it reads and what reads it."""
    block = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.GELU()), nn.ReLU())
    assert flow(block, torch.ones(3, 8), stateful={"1": {"kind": "Inner"}}) == cleandoc("""
        0 0 < -
        1 1 < 0
        2 2 < 1 >
    """)
