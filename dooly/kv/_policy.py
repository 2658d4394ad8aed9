"""The contract of a KV-cache policy, and the one function that applies it: from layers and a budget to the kept tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv_policy import WINDOW_SIZE, check_budget, share_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from dooly.kv._layer import LayerInputs


@dataclass(frozen=True, slots=True)
class Policy(ABC):
    """Which of a prompt's tokens a KV cache keeps. The window, the prompt's last tokens, is always kept."""

    window_size: int = WINDOW_SIZE
    """Last tokens of the prompt, whose attention stands for that of the tokens to come."""

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise InvalidInputError(f"{type(self).__name__}: window_size {self.window_size} is not at least 1")

    @property
    @abstractmethod
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens."""

    @abstractmethod
    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return what one layer's tokens before the window are chosen by: (num_scores, num_kv_heads, num_past).

        The first score orders the tokens; what others mean is the policy's own.
        """

    @abstractmethod
    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return which tokens before the window are kept: (num_layers, num_kv_heads, num_past).

        Args:
            scores: Those of all layers: (num_layers, num_scores, num_kv_heads, num_past).
            num_kept: Tokens to keep before the window, the mean over heads.
        """

    def num_kept(self, num_tokens: int, budget: float) -> int:
        """Return how many tokens each head keeps on average, the window among them: the budget's share, rounded down.

        Raises:
            InvalidInputError: The budget does not lie above 0 and up to 1, or has no room for the window.
        """
        check_budget(budget)
        kept = share_of(num_tokens, budget)
        if budget < 1 and kept < self.window_size:
            raise InvalidInputError(
                f"budget: {budget:g} of {num_tokens} tokens are {kept}, fewer than the window of {self.window_size} that is "
                f"always kept; use at least {min(1.0, self.window_size / num_tokens):.3g} or a longer prompt"
            )
        return kept


def select(policy: Policy, layers: Sequence[LayerInputs], budget: float) -> torch.Tensor:
    """Return which tokens of a prompt are kept.

    Args:
        policy: How.
        layers: All layers that share the policy; of equal numbers of key/value heads and tokens.
        budget: Share of the tokens that are kept, the mean over all heads.

    Returns:
        Whether each token is kept: (num_layers, num_kv_heads, num_tokens), bool.

    Raises:
        InvalidInputError: The budget does not lie above 0 and up to 1 or has no room for the window, layers differ, or scores are
            no numbers.
    """
    import torch

    if any(layer.keys.shape[:2] != layers[0].keys.shape[:2] for layer in layers):
        raise InvalidInputError("select: layers have different numbers of key/value heads or tokens; give those of one shape")
    if any(layer.queries.shape[1] != policy.window_size for layer in layers):
        raise InvalidInputError(f"select: the layers' windows are not the policy's of {policy.window_size}")
    num_kept = policy.num_kept(layers[0].keys.shape[1], budget)
    if num_kept == layers[0].keys.shape[1]:
        return torch.ones(len(layers), *layers[0].keys.shape[:2], dtype=torch.bool, device=layers[0].keys.device)
    return with_window(policy, torch.stack([policy.score(layer) for layer in layers]), num_kept)


def with_window(policy: Policy, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
    """Return which tokens are kept by the layers' scores, the window included.

    Raises:
        InvalidInputError: Scores are no numbers, so that they have no order.
    """
    import torch

    num_before = num_kept - policy.window_size
    kept = policy.keep(scores, num_before)
    if not torch.compiler.is_compiling():  # a trace has no values
        if scores.isnan().any():
            raise InvalidInputError(
                f"{type(policy).__name__}: queries, keys or values give scores that are no numbers; look for weights that are "
                "not finite, and use bfloat16 or float32 in place of float16"
            )
        assert int(kept.sum()) == num_before * kept.shape[0] * kept.shape[1]
    window = torch.ones(*kept.shape[:2], policy.window_size, dtype=torch.bool, device=kept.device)
    return torch.cat([kept, window], -1)


def kept_indices(kept: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Return the positions that each layer's key/value heads keep, growing: a tuple of heads for each layer."""
    return tuple(tuple(head.nonzero().flatten() for head in layer) for layer in kept)
