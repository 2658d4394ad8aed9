"""CriticalKV (arXiv 2502.03805): half of the budget by attention, the rest by attention times the projected value's L1 norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv._adakv import AdaKV, keep_adaptively
from dooly.kv._allocation import keep_counts
from dooly.kv._snapkv import SnapKV, attention_scores

if TYPE_CHECKING:
    import torch

    from dooly.kv._layer import LayerInputs


def critical_scores(layer: LayerInputs, kernel_size: int, epsilon: float) -> torch.Tensor:
    """Return attention, and attention times the projected values' mean norm over a group: (2, num_kv_heads, num_past)."""
    import torch

    attention = attention_scores(layer, kernel_size)
    return torch.stack([attention, (attention + epsilon) * layer.projected_norms(1).mean(1)])


def keep_in_two_stages(scores: torch.Tensor, counts: torch.Tensor, first_stage: float) -> torch.Tensor:
    """Return a first share of each head's budget by attention, and the rest by the weighted scores.

    Args:
        scores: (num_layers, 2, num_kv_heads, num_past).
        counts: Tokens to keep of each head: (num_layers, num_kv_heads).
        first_stage: Share of each that goes by attention alone.
    """
    first = keep_counts(scores[:, 0], (counts * first_stage).long())
    return keep_counts(scores[:, 1], counts, first)


@dataclass(frozen=True, slots=True)
class CriticalKV(SnapKV):
    """Keep each head's tokens whose loss would change the output most."""

    first_stage: float = 0.5
    """Share of the budget that goes by attention alone."""
    epsilon: float = 1e-4
    """What is added to attention, so that a large value counts where hardly anything was attended to; not below 0."""

    def __post_init__(self) -> None:
        SnapKV.__post_init__(self)
        _check_stages(self)

    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return attention, and attention times norm: (2, num_kv_heads, num_past)."""
        return critical_scores(layer, self.kernel_size, self.epsilon)

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return each head's own two stages."""
        return keep_in_two_stages(scores, _counts(scores, num_kept), self.first_stage)


@dataclass(frozen=True, slots=True)
class CriticalAdaKV(AdaKV):
    """CriticalKV within the budgets that Ada-KV gives the heads of a layer."""

    first_stage: float = 0.5
    """Share of the budget that goes by attention alone."""
    epsilon: float = 1e-4
    """What is added to attention, so that a large value counts where hardly anything was attended to; not below 0."""

    def __post_init__(self) -> None:
        AdaKV.__post_init__(self)
        _check_stages(self)

    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return attention, and attention times norm: (2, num_kv_heads, num_past)."""
        return critical_scores(layer, self.kernel_size, self.epsilon)

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return the two stages of each head within its share of the layer's budget."""
        counts = keep_adaptively(scores[:, 0], num_kept, self.safeguard).sum(-1)
        return keep_in_two_stages(scores, counts, self.first_stage)


def _check_stages(policy: CriticalKV | CriticalAdaKV) -> None:
    if not 0 <= policy.first_stage <= 1:
        raise InvalidInputError(f"{type(policy).__name__}: first_stage {policy.first_stage:g} does not lie between 0 and 1")
    if not policy.epsilon >= 0:
        raise InvalidInputError(f"{type(policy).__name__}: epsilon {policy.epsilon:g} is below 0")


def _counts(scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    import torch

    return torch.full((scores.shape[0], scores.shape[2]), num_kept, device=scores.device)
