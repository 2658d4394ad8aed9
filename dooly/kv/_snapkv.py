"""SnapKV (arXiv 2404.14469): each head keeps what the window's queries attended to most, smoothed over neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv._allocation import keep_top
from dooly.kv._policy import Policy
from dooly.kv_policy import Scope

if TYPE_CHECKING:
    import torch

    from dooly.kv._layer import LayerInputs


def attention_scores(layer: LayerInputs, kernel_size: int) -> torch.Tensor:
    """Return the past tokens' attention, mean over the window's queries and a group's heads, average-pooled over neighbours.

    Returns:
        (num_kv_heads, num_past).
    """
    attention = layer.window_attention()[..., : layer.num_past]
    return pool(attention.mean((1, 2)), kernel_size)


def pool(scores: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Return the mean of each token's score and its neighbours', zeros beyond the ends: (..., num_past)."""
    from torch.nn.functional import avg_pool1d

    flat = scores.reshape(-1, 1, scores.shape[-1])
    return avg_pool1d(flat, kernel_size, stride=1, padding=kernel_size // 2).reshape(scores.shape)


@dataclass(frozen=True, slots=True)
class SnapKV(Policy):
    """Keep each head's most attended tokens."""

    kernel_size: int = 5
    """Neighbours that a score is averaged over, itself among them; odd."""

    def __post_init__(self) -> None:
        Policy.__post_init__(self)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise InvalidInputError(f"{type(self).__name__}: kernel_size {self.kernel_size} is not an odd number of at least 1")

    @property
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens."""
        return True

    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return the smoothed attention: (1, num_kv_heads, num_past)."""
        return attention_scores(layer, self.kernel_size)[None]

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return each head's own top."""
        return keep_top(scores[:, 0], num_kept, Scope.HEAD)
