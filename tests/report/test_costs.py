from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dooly.batch import Batch
from dooly.report import cost_operations, total_cost
from dooly.tracing import trace

if TYPE_CHECKING:
    from dooly.tracing import TracedModel

BATCH = Batch((1,) * 4, (16,) * 4)


def test_costs_are_the_closed_forms_by_value(residuals: TracedModel) -> None:
    """A product of 4 tokens, 8 by 24, takes twice their product in FLOPs and moves each operand and the result once."""
    rows = cost_operations(residuals, BATCH)
    (up,) = (row for row in rows if row.operation.module == "layers.0.up")
    assert up.cost is not None
    assert (up.cost.flops, up.cost.size_bytes) == (2 * 4 * 8 * 24, 4 * (8 * 24 + 4 * 8 + 4 * 24))
    assert up.cost.intensity == up.cost.flops / up.cost.size_bytes
    assert total_cost(rows).flops == 2 * (2 * (2 * 4 * 8 * 24)) + 2 * 4 * 8 * 32


def test_rows_of_plain_pytorch_are_the_padded_requests() -> None:
    """Where a forward takes rows of tokens, a batch is its requests as rows, each as long as the longest."""
    module = trace(nn.Linear(8, 12, bias=False), request_dims={"input": ("batch", "seq")})
    module(torch.ones(5, 7, 8))
    (row,) = cost_operations(module.traced, Batch((1, 16, 16), (64, 0, 0), 2))
    assert row.cost is not None
    assert row.cost.flops == 2 * (3 * 16) * 8 * 12
