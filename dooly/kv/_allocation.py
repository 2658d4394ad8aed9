"""Who shares the budget: each head keeps its own, or a layer's or the whole model's heads compete for the sum of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.kv_policy import Scope

if TYPE_CHECKING:
    import torch


def keep_top(scores: torch.Tensor, num_kept: int, scope: Scope, protected: torch.Tensor | None = None) -> torch.Tensor:
    """Return the tokens with the highest scores.

    Of equal scores, the one of the lower layer, then of the lower head, then the earlier token is kept.

    Args:
        scores: (num_layers, num_kv_heads, num_past).
        num_kept: Tokens to keep, the mean over heads.
        scope: What they are shared among.
        protected: Tokens that go before all others, of the same shape.

    Returns:
        Whether each token is kept, of the same shape.
    """
    import torch

    num_layers, num_kv_heads, num_past = scores.shape
    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    rows = {
        Scope.HEAD: (num_layers * num_kv_heads, num_past),
        Scope.LAYER: (num_layers, num_kv_heads * num_past),
        Scope.MODEL: (1, num_layers * num_kv_heads * num_past),
    }[scope]
    if not num_kept:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.reshape(rows)
    each = num_kept * (rows[1] // num_past)
    threshold = flat.topk(each, sorted=False).values.amin(-1, keepdim=True)
    return _up_to(flat, threshold, each).reshape(scores.shape)


def keep_counts(scores: torch.Tensor, counts: torch.Tensor, protected: torch.Tensor | None = None) -> torch.Tensor:
    """Return each head's tokens with the highest scores, where heads keep different numbers; equal scores as in `keep_top`.

    Args:
        scores: (num_layers, num_kv_heads, num_past).
        counts: Tokens to keep of each head: (num_layers, num_kv_heads).
        protected: Tokens that go before all others, of the shape of `scores`.
    """
    import torch

    if protected is not None:
        scores = scores.masked_fill(protected, torch.inf)
    places = (counts - 1).clamp(min=0)[..., None]
    threshold = scores.sort(-1, descending=True).values.gather(-1, places)
    return _up_to(scores, threshold, counts[..., None])


def _up_to(scores: torch.Tensor, threshold: torch.Tensor, num_kept: torch.Tensor | int) -> torch.Tensor:
    """Return what lies above a threshold, and of what equals it the first, until `num_kept` are there."""
    above, equal = scores > threshold, scores == threshold
    room = num_kept - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
