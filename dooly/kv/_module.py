"""A policy's scoring and selecting as a module: `dooly.trace` gives its operations, and `dooly.profile_module` its times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from dooly.errors import InvalidInputError
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import select

if TYPE_CHECKING:
    from dooly.kv._policy import Policy
    from dooly.kv._structured import AttentionShape


class Selection(nn.Module):
    """Choose the kept tokens of one layer: what a policy costs after a prompt, once a layer.

    A policy of the whole model scores each layer so, and chooses among them all at once.
    """

    def __init__(self, policy: Policy, budget: float, shape: AttentionShape) -> None:
        super().__init__()
        self.policy = policy
        self.budget = budget
        self.num_heads = shape.num_heads
        self.num_kv_heads = shape.num_kv_heads
        self.head_dim = shape.head_dim
        self.window_size = policy.window_size
        self.output_projection = nn.Parameter(torch.randn(shape.num_heads, shape.head_dim, shape.hidden_size))

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return which tokens are kept: (num_kv_heads, num_tokens).

        Args:
            queries: Those of the window: (num_heads, window_size, head_dim).
            keys: (num_kv_heads, num_tokens, head_dim).
            values: (num_kv_heads, num_tokens, head_dim).

        Raises:
            InvalidInputError: They are of another model's sizes.
        """
        if queries.shape != (self.num_heads, self.window_size, self.head_dim):
            raise InvalidInputError("Selection: the queries are not (num_heads, window_size, head_dim) of its shape and policy")
        if keys.shape[0] != self.num_kv_heads:
            raise InvalidInputError("Selection: the keys are not (num_kv_heads, num_tokens, head_dim) of its shape")
        layer = LayerInputs(queries, keys, values, self.output_projection, float(self.head_dim) ** -0.5)
        return select(self.policy, [layer], self.budget)[0]
