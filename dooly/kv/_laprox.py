"""LaProx (arXiv 2605.07234): what dropping a token costs the product of all heads' attention and their projected values.

A layer's output is [A_1 ... A_H] times the stacked V W_O[h]. A column of the one and the row of the other that it meets cost at
most the product of their norms (Drineas, Kannan and Mahoney 2006), and a token of a key/value head is one such pair for each head
of the group. Known from the paper's abstract: the norms, the sum over a group and the layer's output as unit are our reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.kv._allocation import keep_top
from dooly.kv._layer import positive
from dooly.kv._policy import Policy
from dooly.kv_policy import Scope

if TYPE_CHECKING:
    import torch

    from dooly.kv._layer import LayerInputs


def product_scores(layer: LayerInputs) -> torch.Tensor:
    """Return the bound on what each past token adds to the layer's output over the window, in units of that output.

    Returns:
        (num_kv_heads, num_past).
    """
    attention = layer.window_attention()
    columns = attention[..., : layer.num_past].square().sum(2).sqrt()
    scores: torch.Tensor = (columns * layer.projected_norms(2)).sum(1) / positive(_output_norm(layer, attention))
    return scores


def _output_norm(layer: LayerInputs, attention: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm of the layer's output over the window."""
    from torch import linalg

    heads = (attention.flatten(1, 2) @ layer.values.to(attention.dtype)).reshape(*layer.queries.shape[:2], -1)
    output = heads.transpose(0, 1).flatten(1) @ layer.output_projection.flatten(0, 1).to(heads.dtype)
    norm: torch.Tensor = linalg.vector_norm(output)
    return norm


@dataclass(frozen=True, slots=True)
class LaProx(Policy):
    """Keep the tokens of the whole model whose loss would change layers' outputs most."""

    scope: Scope = Scope.MODEL
    """Whose heads share the budget."""

    @property
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens."""
        return self.scope is Scope.HEAD

    def score(self, layer: LayerInputs) -> torch.Tensor:
        """Return the bound: (1, num_kv_heads, num_past)."""
        return product_scores(layer)[None]

    def keep(self, scores: torch.Tensor, num_kept: int) -> torch.Tensor:
        """Return the top of all that share."""
        return keep_top(scores[:, 0], num_kept, self.scope)
