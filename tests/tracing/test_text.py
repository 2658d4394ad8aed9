from __future__ import annotations

import torch
from torch import Tensor, nn

from dooly.tracing import TracedModel, trace


class Scaled(nn.Module):
    """A projection in a list, then code of its own."""

    def __init__(self, hidden_size: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(1))

    def forward(self, x: Tensor) -> Tensor:
        """Return (num_tokens, hidden_size)."""
        for layer in self.layers:
            x = layer(x)
        return x * torch.sigmoid(x)


def table(long_name: str = "num_tokens") -> TracedModel:
    """Return the operations of `Scaled`."""
    module = trace(Scaled, request_dims={"x": (long_name,)})(hidden_size=8)
    module(torch.randn(5, 8))
    traced: TracedModel = module.traced
    return traced


def test_a_table_prints_its_operations_in_columns() -> None:
    """Path, count, stage and shapes over names stand below each other; the model's own code goes by its class."""
    assert str(table()).splitlines() == [
        "Scaled",
        "operation  count  stage    inputs -> outputs",
        "layers.0       1  decoder  [hidden_size, hidden_size] [num_tokens, hidden_size] -> [num_tokens, hidden_size]",
        "Scaled         1  decoder  [num_tokens, hidden_size] -> [num_tokens, hidden_size]",
    ]


def test_long_shapes_are_folded_between_tensors() -> None:
    """A shape that does not fit goes on in its own column; none is broken or cut."""
    name = "number_of_all_the_tokens_that_one_step_computes"
    assert str(table(name)).splitlines()[2:] == [
        f"layers.0       1  decoder  [hidden_size, hidden_size] [{name}, hidden_size]",
        f"                           -> [{name}, hidden_size]",
        f"Scaled         1  decoder  [{name}, hidden_size]",
        f"                           -> [{name}, hidden_size]",
    ]


def test_the_repr_is_one_line() -> None:
    """In a traceback or a list a table shows which one it is, not all that it holds."""
    assert repr(table()) == "<TracedModel Scaled: 2 operations>"


def test_own_code_and_numbered_modules_go_by_their_class() -> None:
    """Where the module path ends in a number, or is empty, the class names the operation."""
    assert [(op.module, op.name, op.module_class) for op in table().operations] == [
        ("layers.0", "Linear", "Linear"),
        ("", "Scaled", "Scaled"),
    ]
