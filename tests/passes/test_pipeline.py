from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from passes import analyse, sign

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph


def test_each_operation_carries_what_the_passes_found(capture: Callable[..., CapturedGraph]) -> None:
    """Operations come in the order they run, each with cost, canonical graph, signature and request dimensions."""
    module = nn.Sequential(nn.Linear(8, 12, bias=False), nn.ReLU(), nn.Linear(12, 8, bias=False))
    analysis = analyse(capture(module, torch.ones(5, 8), request_dims={"args[0]": ("num_tokens", None)}))
    assert [(op.operation.module, op.operation.module_class) for op in analysis.operations] == [
        ("0", "Linear"),
        ("1", "ReLU"),
        ("2", "Linear"),
    ]
    assert [bool(op.cost.flops) for op in analysis.operations] == [True, False, True]
    assert all(op.signature == sign(op.canonical) for op in analysis.operations)
    assert {op.request_dims for op in analysis.operations} == {("num_tokens",)}
    assert {str(symbol) for symbol in analysis.origins.requests} >= {"num_tokens"}
