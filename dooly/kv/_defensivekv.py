"""DefensiveKV and Layer-DefensiveKV (arXiv 2510.13334): score by the worst case over the window instead of its mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.kv._allocation import keep_top
from dooly.kv._layer import positive
from dooly.kv._snapkv import SnapKV, pool
from dooly.kv_policy import Scope

if TYPE_CHECKING:
    import torch

    from dooly.kv._layer import LayerInputs

_MASS = 0.9
"""Share of the mean attention whose tokens are kept before values count."""


def worst_case(attention: torch.Tensor) -> torch.Tensor:
    """Return the largest attention over a group's heads and the window, raised to at least its mean over tokens.

    Args:
        attention: (num_kv_heads, group, window_size, num_past).

    Returns:
        (num_kv_heads, num_past).
    """
    largest = attention.amax((1, 2))
    return largest.maximum(largest.mean(-1, keepdim=True))


def mean_case(attention: torch.Tensor) -> torch.Tensor:
    """Return the mean attention in place of the worst case, for comparison; shapes as there."""
    return attention.mean((1, 2))


def core_attention(attention: torch.Tensor, num_past: int) -> torch.Tensor:
    """Return the mean attention of the tokens that make up most of it, and 0 of the others.

    Together with the window's own mean share they reach `_MASS`.

    Args:
        attention: (num_kv_heads, group, window_size, num_tokens).
        num_past: Tokens before the window.

    Returns:
        (num_kv_heads, num_past).
    """
    window_share = attention[..., num_past:].sum(-1).mean()
    mean = attention[..., :num_past].mean((1, 2))
    largest, places = (mean / positive(mean.sum(-1, keepdim=True))).sort(dim=-1, descending=True, stable=True)
    inside = (largest.cumsum(-1) < _MASS - window_share).to(mean.dtype)
    return mean * inside.new_zeros(inside.shape).scatter(-1, places, inside)


@dataclass(frozen=True, slots=True)
class DefensiveKV(SnapKV):
    """Keep the tokens of a layer's heads that matter most in the worst case."""

    scope: Scope = Scope.LAYER
    """Whose heads share the budget; the whole model's in Layer-DefensiveKV."""
    defensive: bool = True
    """Whether the worst case counts; the mean otherwise, which shows what it brings."""

    @property
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens."""
        return self.scope is Scope.HEAD

    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return the worst case weighted by values, and the attention of each head's core: (2, num_kv_heads, num_past)."""
        import torch

        attention = layer.window_attention()
        past = attention[..., : layer.num_past]
        smooth = pool(past, self.kernel_size)
        smooth = smooth / positive(smooth.sum(-1, keepdim=True)) * past.sum(-1, keepdim=True)
        case = worst_case(smooth) if self.defensive else mean_case(smooth)
        norms = layer.projected_norms(1).mean(1)
        return torch.stack([case * (norms / positive(norms.sum(0))), core_attention(attention, layer.num_past)])

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return the top of all that share; each head's core, as far as its even budget goes, ties with the layer's highest."""
        worst, core = scores[:, 0], scores[:, 1]
        protected = keep_top(core, num_kept, Scope.HEAD) & (core > 0)
        return keep_top(worst.where(~protected, worst.amax((1, 2), keepdim=True)), num_kept, self.scope)
