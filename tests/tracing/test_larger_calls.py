from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from dooly.tracing import trace

if TYPE_CHECKING:
    from types import ModuleType


class Branch(nn.Module):
    """Goes another way for a single row."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, 8)."""
        return torch.relu(x) if x.shape[0] == 1 else torch.tanh(x)


def test_a_batch_of_one_is_a_request_dimension() -> None:
    """The first call that people make: FLOPs grow with the batch, signatures and results are those of any batch."""
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 32))
    one, many = trace(model), trace(model)
    x = torch.randn(1, 32)
    assert torch.equal(one(x), model(x))
    many(torch.randn(5, 32))
    assert [op.request_flops for op in one.traced.operations] == [
        f"{2 * 32 * 48}*input.size(0)",
        "0",
        f"{2 * 32 * 48}*input.size(0)",
    ]
    assert [op.signature for op in one.traced.operations] == [op.signature for op in many.traced.operations]


def test_a_sequence_of_one_is_a_request_dimension(modules: ModuleType) -> None:
    """Where both sizes are one, both are the request's: a decode is traced as a prefill of any length."""
    traced = trace(modules.Transformer(num_layers=1), request_dims={"ids": ("batch", "seq")})
    traced(torch.randint(100, (1, 1)))
    assert {name for op in traced.traced.operations for name in op.request_dims} == {"batch", "seq", "batch*seq"}


@pytest.mark.parametrize(
    ("module", "shape", "dims"),
    [
        (Branch(), (1, 8), {"x.size(1)"}),
        (nn.Conv2d(1, 4, 3), (1, 1, 9, 9), {"input.size(0)", "input.size(2)", "input.size(3)"}),
        (nn.PReLU(), (5, 1), {"input.size(0)"}),
    ],
    ids=["a branch", "a channel", "a parameter of one"],
)
def test_a_size_of_one_may_have_a_meaning(module: nn.Module, shape: tuple[int, ...], dims: set[str]) -> None:
    """A call for which the code goes another way, and sizes that the module fixes, are traced as given."""
    traced = trace(module)
    traced(torch.randn(shape))
    assert {name for op in traced.traced.operations for name in op.request_dims} == dims
