from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from passes import analyse

if TYPE_CHECKING:
    from collections.abc import Callable

    from passes import AnalysedOperation, CapturedGraph

    Capture = Callable[..., CapturedGraph]


@torch.library.custom_op("dooly_tests::add_norm", mutates_args=("x", "residual"))
def _add_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    residual.add_(x)
    x.copy_(residual * weight)
    return x.clone(), residual.clone()


@_add_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG001 - the operator's own arguments
    return torch.empty_like(x), torch.empty_like(residual)


class Norm(nn.Module):
    """Adds the residual and scales, in place, as engines do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, (tokens, 8)."""
        out, added = torch.ops.dooly_tests.add_norm(x, residual, self.weight)
        return out, added


class Model(nn.Module):
    """Two norms; the second one's residual is thrown away, and what the first wrote to is handed out as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.proj = Norm(), Norm(), nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, (tokens, 8)."""
        kept = self.proj(x)
        y, residual = self.first(kept, self.proj(x * 2))
        out, _ = self.last(self.proj(y).view_as(y), residual)
        return out, kept


def norms(captured: CapturedGraph) -> list[AnalysedOperation]:
    """Return the operations that the norms run."""
    return [op for op in analyse(captured).operations if op.operation.module_class == "Norm"]


def test_an_in_place_operator_writes_what_it_returns(capture: Capture) -> None:
    """Results count whether or not they are used, and an operand that was written to is the result under another name."""
    found = norms(capture(Model(), torch.ones(5, 8)))
    assert [len(op.operation.outputs) for op in found] == [2, 2]
    (num_tokens,) = {s for s in found[0].cost.bytes.free_symbols if s.name == "x.size(0)"}
    assert {
        op.cost.bytes.coeff(num_tokens).subs(dict.fromkeys(op.cost.bytes.free_symbols - {num_tokens}, 8)) for op in found
    } == {4 * 4 * 8}


def test_a_whole_view_is_the_tensor_itself(capture: Capture) -> None:
    """An in-place operator on a view of a whole tensor is the same operation as on the tensor."""
    signatures = {op.signature for op in norms(capture(Model(), torch.ones(5, 8)))}
    assert len(signatures) == 1


class Counter(nn.Module):
    """Writes to a buffer of its own, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.ones(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, (tokens, 8)."""
        torch.ops.dooly_tests.add_norm(x + 1, self.seen, self.seen[0])
        return x + 1


def test_a_buffer_is_written_by_the_operator_itself(capture: Capture) -> None:
    """The copy that ends an in-place operator on a buffer is no operation: nothing is moved twice."""
    operators = {str(n.target) for op in analyse(capture(Counter(), torch.ones(5, 8))).operations for n in op.operation.nodes}
    assert "auto_functionalized_v2" in operators
    assert "aten.copy_.default" not in operators
