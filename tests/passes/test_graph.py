from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from passes.graph import dtype_of, module_calls, number_of, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import CapturedGraph


class Inner(nn.Module):
    """A product with a size."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the two largest numbers of each row."""
        return torch.topk(x.bfloat16() * (2 * x.shape[0]), 2)[0]


@pytest.fixture(scope="module")
def captured(capture: Callable[..., CapturedGraph]) -> CapturedGraph:
    """Return the graph of the inner module, nested in two."""
    return capture(nn.Sequential(nn.Sequential(Inner())), torch.ones(5, 8))


def test_a_captured_graph_reads_as_values(captured: CapturedGraph) -> None:
    """Each node is a tensor with shape and dtype, a number, or neither."""

    def text(size: object) -> str:
        symbols = {str(s): source.text.removeprefix("L['args'][0]") for s, source in captured.sources.items()}
        return " ".join(symbols.get(word, word) for word in str(size).replace("*", " * ").split())

    lines = []
    for node in captured.graph.nodes:
        shape, number = shape_of(node), number_of(node)
        value = f"{dtype_of(node)} {[text(size) for size in shape]}" if shape is not None else text(number)
        lines.append(f"{node.op} {node.target if node.op == 'call_function' else ''}: {value}")
    rows, columns = ".size()[0]", ".size()[1]"
    assert lines == [
        f"placeholder : {rows}",
        f"placeholder : {columns}",
        f"placeholder : float32 ['{rows}', '{columns}']",
        f"call_function aten._to_copy.default: bfloat16 ['{rows}', '{columns}']",
        f"call_function <built-in function mul>: 2 * {rows}",
        f"call_function aten.mul.Tensor: bfloat16 ['{rows}', '{columns}']",
        "call_function aten.topk.default: None",
        f"call_function <built-in function getitem>: bfloat16 ['{rows}', '2']",
        "output : None",
    ]


def test_a_number_is_told_from_what_is_no_node() -> None:
    """What is no node stands for no number."""
    assert number_of(3) is None


def test_module_calls_lead_from_the_traced_module_inwards(captured: CapturedGraph) -> None:
    """Paths start below the traced module; a node outside all calls belongs to the traced module."""
    (product,) = (node for node in captured.graph.nodes if str(node.target) == "aten.mul.Tensor")
    assert [(path, name) for _, path, name in module_calls(product, captured.module_argument)] == [
        ("", ""),
        ("", "Sequential"),
        ("0", "Sequential"),
        ("0.0", "Inner"),
    ]
    first = next(iter(captured.graph.nodes))
    assert module_calls(first, captured.module_argument) == [("", "", "")]
