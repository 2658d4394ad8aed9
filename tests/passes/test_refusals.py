"""What no pass can read is refused, by the operator's name and with what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from passes import PassError, analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph


class Branch(nn.Module):
    """One of two ways, by the data."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


class Nonzero(nn.Module):
    """A result as long as the data says."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the places that hold no zero."""
        return x.nonzero()


class Item(nn.Module):
    """A number read from a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        return x * int(x.sum().item())


class Flexible(nn.Module):
    """Attention with a function of the scores."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the input's shape."""
        heads = x[None, None]
        return flex_attention(heads, heads, heads, lambda score, *_: score)[0, 0]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Flexible(),
            r"operations: higher_order\.flex_attention in 0: .*; write it as torch\.nn\.functional\.scaled_dot",
        ),
        (Branch(), r"operations: higher_order\.cond in 0: runs code that the captured graph does not show; make that code a "),
        (Nonzero(), r"operations: nonzero in 0: its result's size or value depends on the data; make the code around it a "),
        (Item(), r"operations: _local_scalar_dense in 0: its result's size or value depends on the data; "),
    ],
    ids=["flex_attention", "cond", "nonzero", "item"],
)
def test_what_the_graph_does_not_show_is_refused(capture: Callable[..., CapturedGraph], module: nn.Module, message: str) -> None:
    """Branches on the data, sizes and numbers that depend on it are errors, never guesses."""
    with pytest.raises(PassError, match=message):
        analyse(capture(nn.Sequential(module), torch.ones(5, 8)))


class Region(nn.Module):
    """Work in another element type by region."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result: Tensor = self.proj(x)
        return result


def test_an_autocast_region_is_its_conversions(table: Callable[..., str]) -> None:
    """Regions leave no operator behind but the conversions that they cause, which belong to the module inside."""
    assert table(Region(), torch.ones(3, 8)).splitlines()[0] == "proj Linear: _to_copy _to_copy t mm"
