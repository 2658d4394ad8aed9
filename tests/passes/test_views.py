from __future__ import annotations

from inspect import cleandoc
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

    Table = Callable[..., str]


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


class OwnViews(nn.Module):
    """Own code around a leaf whose pieces are joined by views alone."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (8, tokens)."""
        left, right = torch.relu(x).t(), torch.tanh(x).t()
        return left - right + self.act(x).t()


def test_views_at_the_border_belong_to_nothing(table: Table) -> None:
    """Views before and behind a leaf leave it as it is, and make no operation of their own."""
    assert table(Borders(8), torch.ones(8, 3)) == cleandoc("""
        proj Linear: t mm
            in  *[proj.weight.size(0)=8, proj.weight.size(1)=8]
            in  [x.size(1), proj.weight.size(1)=8]
            out [x.size(1), proj.weight.size(0)=8]
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


class Complex(nn.Module):
    """Work on pairs of numbers as complex ones."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return torch.view_as_real(self.act(torch.view_as_complex(x)))


def test_operators_say_themselves_whether_they_are_views(table: Table) -> None:
    """Every operator that PyTorch declares a view is one, such as complex numbers seen as pairs."""
    assert table(Complex(), torch.ones(3, 8, 2)) == cleandoc("""
        act Tanh: tanh
            in  complex64[x.size(0), x.size(1)]
            out complex64[x.size(0), x.size(1)]
    """)


class Filled(nn.Module):
    """Memory set aside for what nobody computes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return memory of the input's shape, and a result."""
        return torch.empty_like(x), torch.relu(x)


def test_memory_alone_is_no_operation(table: Table) -> None:
    """Setting memory aside runs nothing."""
    assert table(nn.Sequential(Filled()), torch.ones(3, 8)) == cleandoc("""
        0 Filled: empty_like relu
            in  [args[0].size(0), args[0].size(1)]
            out [args[0].size(0), args[0].size(1)]
    """)
