"""Ada-KV (arXiv 2407.11550): a layer's heads share their budget by their scores, each with a safeguard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv._allocation import keep_top
from dooly.kv._snapkv import SnapKV
from dooly.kv_policy import Scope, share_of

if TYPE_CHECKING:
    import torch


def keep_adaptively(scores: torch.Tensor, num_kept: int, safeguard: float) -> torch.Tensor:
    """Return the top of each layer's heads together, after each head's own first share of its even budget.

    Args:
        scores: (num_layers, num_kv_heads, num_past).
        num_kept: Tokens to keep, the mean over a layer's heads.
        safeguard: Share of `num_kept` that every head keeps.
    """
    protected = keep_top(scores, share_of(num_kept, safeguard), Scope.HEAD)
    return keep_top(scores, num_kept, Scope.LAYER, protected)


@dataclass(frozen=True, slots=True)
class AdaKV(SnapKV):
    """Keep the most attended tokens of a layer's heads together."""

    safeguard: float = 0.2
    """Share of its even budget that each head keeps in any case."""

    def __post_init__(self) -> None:
        SnapKV.__post_init__(self)
        if not 0 <= self.safeguard <= 1:
            raise InvalidInputError(f"{type(self).__name__}: safeguard {self.safeguard:g} does not lie between 0 and 1")

    @property
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens."""
        return False

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return the top of each layer's heads together, with the safeguards."""
        return keep_adaptively(scores[:, 0], num_kept, self.safeguard)
