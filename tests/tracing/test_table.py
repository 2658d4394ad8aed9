from __future__ import annotations

import sympy
import torch
from torch import Tensor, nn

from dooly.tracing import TracedModel, capture_forward, tabulate, trace


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


def test_what_a_stateful_module_does_beside_its_state_counts() -> None:
    """Products in its own code are added to what its state costs, with the weights that they read."""
    captured = capture_forward(Twice(), (torch.ones(3, 8), torch.ones(5, 8))).describe(
        {"x": ("n", None), "y": ("m", None)}, stateful={"proj": {"kind": "Attention"}}
    )
    n, m, pairs = sympy.symbols("n m query_key_pairs", integer=True, positive=True)
    rows = tabulate(captured, stage="decoder", state_cost=lambda _: (7 * pairs, 3 * pairs))
    flops = {op.request_flops for op in rows if op.stateful}
    assert flops == {str(7 * pairs + 2 * 64 * size) for size in (n, m)}
    assert all("3*query_key_pairs" in op.request_bytes for op in rows if op.stateful)
