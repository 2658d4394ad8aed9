"""Triton kernels as operators: what a kernel's source says that it writes, and what its launch leaves in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dooly.engines.vllm._triton import Kernel, _define_launch, _marked
from dooly.tracing import capture_forward

tl: Any = None


def stores(x_ptr, index_ptr, out_ptr, stride, BLOCK):  # noqa: ANN001, ANN201, N803 - as kernels are written
    """Store through a pointer that is moved, at places that are loaded."""
    place = tl.load(index_ptr + tl.program_id(0))
    target = out_ptr + place * stride
    for start in range(0, stride, BLOCK):
        tl.store(target, tl.load(x_ptr + start))
        target += BLOCK


def adds(x_ptr, total_ptr):  # noqa: ANN001, ANN201 - as above
    """Add atomically."""
    tl.atomic_add(total_ptr, tl.load(x_ptr))


def describes(x_ptr, out_ptr):  # noqa: ANN001, ANN201 - as above
    """Store through a descriptor."""
    descriptor = tl.make_tensor_descriptor(out_ptr)
    descriptor.store([0], tl.load(x_ptr))


inner = Kernel(adds)


def calls(x_ptr, sum_ptr):  # noqa: ANN001, ANN201 - as above
    """Leave the writing to another kernel."""
    inner(x_ptr, sum_ptr)


@pytest.mark.parametrize(
    ("function", "written"), [(stores, {"out_ptr"}), (adds, {"total_ptr"}), (describes, {"out_ptr"}), (calls, {"sum_ptr"})]
)
def test_what_a_kernel_writes(function: Any, written: set[str]) -> None:  # noqa: ANN401 - a kernel's source
    """Pointers that reach a store are written, those that only give places or values are not."""
    assert {name for name in Kernel(function).written if name.endswith("_ptr")} == written


class Launches(nn.Module):
    """Launches a kernel, and code that is never captured."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = Kernel(adds)
        self.state = _marked(attend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute twice."""
        total, output = torch.empty_like(x), torch.empty_like(x)
        self.kernel[(1,)](x, total, FAST=True)
        self.state(total, output)
        return output


def attend(query: torch.Tensor, output: torch.Tensor) -> None:
    """Stand for attention."""
    raise NotImplementedError


def test_launches_show_in_a_graph() -> None:
    """A launch is an operator with the kernel's name and choices, and what follows reads what it wrote."""
    _define_launch()
    graph = capture_forward(Launches(), (torch.empty(4, 8, device="meta"),)).describe().graph
    kernels = [node.kwargs["kernel"] for node in graph.nodes if "kernel" in node.kwargs]
    assert kernels == ["adds(FAST=True)", "attend"]
