from __future__ import annotations

import torch
from torch import Tensor, nn

from dooly.tracing import TracedModel, trace


class Twice(nn.Module):
    """One layer over two arguments, and over the first once more."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the projections, (n, 8), (m, 8) and (n, 8)."""
        return self.proj(x), self.proj(y), self.proj(-x)


def test_one_module_over_two_sizes_is_two_rows() -> None:
    """Runs of one module over one request dimension are one row; over another dimension another, of the same signature."""
    traced = trace(Twice(), request_dims={"x": ("n", None), "y": ("m", None)})
    traced(torch.randn(3, 8), torch.randn(5, 8))
    rows = [op for op in traced.traced.operations if op.module == "proj"]
    assert [(op.request_dims, op.count, len(op.calls)) for op in rows] == [(("n",), 2, 2), (("m",), 1, 1)]
    assert len({op.signature for op in rows}) == 1
    assert TracedModel.from_json(traced.traced.to_json()) == traced.traced
