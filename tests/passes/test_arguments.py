"""What an operator is called with enters its signature: variants of one call, captured as leaves of one module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

from passes import analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph

    Run = Callable[[Tensor], Tensor]


class Apply(nn.Module):
    """A function as a leaf module."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        """Return what the function makes of the input."""
        return self.run(x)


class Variants(nn.Module):
    """Functions, each a leaf of its own, over one input."""

    def __init__(self, runs: tuple[Run, ...]) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(map(Apply, runs))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each function's result."""
        return tuple(leaf(x) for leaf in self.leaves)


@pytest.fixture(scope="session")
def kinds(capture: Callable[..., CapturedGraph]) -> Callable[..., int]:
    """Return a function that counts the different operations among functions over an input of shape (5, 4, 7, 6)."""

    def count(*runs: Run) -> int:
        operations = analyse(capture(Variants(runs), torch.ones(5, 4, 7, 6))).operations
        assert len(operations) == len(runs)
        return len({operation.signature for operation in operations})

    return count


DIFFERENT: dict[str, tuple[Run, ...]] = {
    "an activation": (torch.relu, torch.tanh, F.silu, F.gelu),
    "a flag": (lambda x: x.sum(0), lambda x: x.sum(0, keepdim=True)),
    "a number": (lambda x: x + 1, lambda x: x + 2, lambda x: x + 2.0, lambda x: x * 1j, lambda x: x * 2j),
    "a list": (
        lambda x: x.flip(0),
        lambda x: x.flip(1),
        lambda x: x.flip(0, 1),
        lambda x: F.pad(x, (1, 2)),
        lambda x: F.pad(x, (2, 1)),
    ),
    "a place in a list": (lambda x: x[torch.arange(2)], lambda x: x[:, torch.arange(2)]),
    "an element type": (lambda x: x.to(torch.float64), lambda x: x.to(torch.int32)),
    "a memory format": (lambda x: x.clone(), lambda x: x.clone(memory_format=torch.channels_last)),
    "a text": (F.gelu, lambda x: F.gelu(x, approximate="tanh")),
    "a size": (
        lambda x: x * x.shape[0],
        lambda x: x * x.shape[1],
        lambda x: x * (x.shape[0] // 2),
        lambda x: x * (x.shape[0] // 3),
    ),
    "sums of products": (
        lambda x: x.sum() * (x.shape[0] * x.shape[1] + x.shape[2] * x.shape[3]),
        lambda x: x.sum() * (x.shape[0] * x.shape[2] + x.shape[1] * x.shape[3]),
    ),
    "an operand": (lambda x: torch.relu(x) - torch.tanh(x), lambda x: torch.tanh(x) - torch.relu(x)),
    "a result": (lambda x: x.topk(2, 0)[0] + x.topk(3, 0)[1][:2], lambda x: x.topk(2, 0)[1] + x.topk(3, 0)[0][:2]),
    "a size's place": (lambda x: x.new_zeros(x.shape[0], 4).relu(), lambda x: x.new_zeros(4, x.shape[0]).relu()),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_differs_in_an_argument_differs(kinds: Callable[..., int], name: str) -> None:
    """Calls of one operator that differ in one argument are different operations."""
    assert kinds(*DIFFERENT[name]) == len(DIFFERENT[name])


def test_what_differs_in_nothing_is_one(kinds: Callable[..., int]) -> None:
    """The same work written in two ways that lower to one is one operation; devices are part of the environment."""
    assert kinds(lambda x: x.flip(0) * 2, lambda x: torch.flip(x, [0]).mul(2), lambda x: 2 * torch.flip(x, dims=(0,))) == 1
