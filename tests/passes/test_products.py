"""FLOPs of engines' products over quantised weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from passes import estimate_cost, name_origins, split_operations

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", autouse=True)
def operators() -> Iterator[None]:
    """Products as engines have them: one writes into an operand, two return."""
    library = torch.library.Library("vllm", "FRAGMENT")
    library.define("fp8_gemm_nt_op(Tensor q_input, Tensor weight, Tensor(a!) output) -> ()")
    library.define("marlin_gemm(Tensor a, Tensor b_q_weight, SymInt size_n) -> Tensor")
    library.define("fp32_router_gemm_dispatch(Tensor x, Tensor weight, bool allow_bf16x3_router_gemm) -> Tensor")
    library.impl("fp32_router_gemm_dispatch", lambda x, weight, _: x.new_empty(x.shape[0], weight.shape[0]), "Meta")
    library.impl("fp8_gemm_nt_op", lambda *_: None, "Meta")
    library.impl("marlin_gemm", lambda a, _b, n: a.new_empty(a.shape[0], n), "Meta")
    yield
    library._destroy()


class Written(nn.Module):
    """Writes its product; `packed` elements of the left factor lie in one."""

    def __init__(self, dtype: torch.dtype, packed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 64 // packed, device="meta", dtype=dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        out = x.new_empty(x.shape[0], self.weight.shape[0], dtype=torch.bfloat16)
        torch.ops.vllm.fp8_gemm_nt_op(x, self.weight, out)
        return out


class Returned(nn.Module):
    """Returns its product over weights of four bits, eight in one element."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(64 // 8, 24, device="meta", dtype=torch.int32), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return torch.ops.vllm.marlin_gemm(x, self.weight, 24)


class Router(nn.Module):
    """Scores experts by a product of the engine's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(24, 64, device="meta"), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply."""
        return torch.ops.vllm.fp32_router_gemm_dispatch(x, self.weight, True)  # noqa: FBT003 - as the engine calls it


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (Written(torch.float8_e4m3fn, 1), torch.empty(5, 64, device="meta", dtype=torch.float8_e4m3fn)),
        (Written(torch.uint8, 2), torch.empty(5, 32, device="meta", dtype=torch.uint8)),
        (Returned(), torch.empty(5, 64, device="meta", dtype=torch.bfloat16)),
        (Router(), torch.empty(5, 64, device="meta")),
    ],
    ids=["eight bits", "four bits, packed", "weights alone", "a router"],
)
def test_a_product_counts_as_what_it_stands_for(module: nn.Module, x: torch.Tensor) -> None:
    """A product of 64 x 24 does twice as many operations a row, in whatever types and places its factors and result lie."""
    from dooly.tracing import capture_forward

    captured = capture_forward(module, (x,)).describe({"x": ("rows", None)})
    origins = name_origins(captured)
    (operation,) = split_operations(captured, origins)
    sizes = {"rows": 5, "x.size(1)": x.shape[1]} | {str(symbol): value for symbol, value in origins.values.items()}
    flops = estimate_cost(operation, origins).flops
    assert flops.subs({symbol: sizes[str(symbol)] for symbol in flops.free_symbols}) == 2 * 5 * 64 * 24
