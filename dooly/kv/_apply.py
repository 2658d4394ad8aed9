"""A policy at work in a Transformers model: prompts are scored as they are computed, and later tokens attend to what is kept."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError
from dooly.kv._critiprefill import CritiPrefill
from dooly.kv._interface import AttentionModule, attending, attention_modules
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import Policy, with_window
from dooly.kv._registry import find_policy
from dooly.kv_policy import check_budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    Prompts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Queries, keys and values of a batch of prompts, each (batch, heads, num_tokens, head_dim)."""
    Attended = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(slots=True)
class AppliedPolicy:
    """What a policy has kept of the last prompts; filled while the model runs."""

    policy: Policy | CritiPrefill
    """How tokens are kept."""
    budget: float
    """Share of a prompt's tokens that are kept, or that a segment of a prompt attends to."""
    kept: torch.Tensor | None = None
    """Whether each token of the last prompts is kept: (batch, num_layers, num_kv_heads, num_tokens). None before the first token
    after a prompt, and where all are: at budget 1, and under CritiPrefill."""
    _scores: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    _previous: dict[int, torch.Tensor] = field(default_factory=dict)
    _num_kept: int = 0

    def attend(self, at: int, layer: AttentionModule, module: nn.Module, *args: Any, **kwargs: Any) -> Attended:  # noqa: ANN401 - as called
        """Compute the attention of the module that is number `at` among those of the policy."""
        query, key, value, mask, *more = args
        is_prompt = query.shape[2] == key.shape[2] and query.shape[2] > 1
        if is_prompt and mask is not None:
            _check_causal(mask)
        if self.budget == 1:
            return layer.attend(module, *args, **kwargs)
        if isinstance(self.policy, CritiPrefill):
            if not is_prompt or at < self.policy.num_dense_layers or self.policy.is_whole(query.shape[2]):
                return layer.attend(module, *args, **kwargs)
            return self._prefill(at, (query, key, value), kwargs["scaling"]), None
        if is_prompt:
            self._score(at, (query, key, value), layer.output_projection, kwargs["scaling"])
        elif self._scores or self.kept is not None:
            mask = self._mask(at, query, key, mask)
        return layer.attend(module, query, key, value, mask, *more, **kwargs)

    def _score(self, at: int, attended: Prompts, projection: torch.Tensor, scaling: float) -> None:
        """Score one layer's prompts; which tokens are kept is chosen when all layers are there."""
        assert isinstance(self.policy, Policy)
        if at == 0:
            self.kept = None
            self._scores.clear()
        query, key, value = attended
        self._num_kept = self.policy.num_kept(key.shape[2], self.budget)
        window = query[:, :, -self.policy.window_size :]
        self._scores[at] = [
            self.policy.score(LayerInputs(*inputs, projection, scaling)) for inputs in zip(window, key, value, strict=True)
        ]

    def _mask(self, at: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Return a mask for each head in which a request's dropped tokens are left out: (batch, num_heads, queries, keys)."""
        import torch

        assert isinstance(self.policy, Policy)
        if self._scores:
            requests = zip(*(self._scores[at] for at in sorted(self._scores)), strict=True)
            kept = [with_window(self.policy, torch.stack(layers), self._num_kept) for layers in requests]
            self.kept = torch.stack(kept)
            self._scores.clear()
        assert self.kept is not None
        num_queries, num_keys, num_prompt = query.shape[2], key.shape[2], self.kept.shape[3]
        after = self.kept.new_ones(*self.kept.shape[:1], self.kept.shape[2], num_keys - num_prompt)
        seen = torch.cat([self.kept[:, at], after], -1).repeat_interleave(query.shape[1] // key.shape[1], 1)[:, :, None]
        if mask is None:
            return seen & seen.new_ones(num_queries, num_keys).tril(num_keys - num_queries)
        return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)

    def _prefill(self, at: int, attended: Prompts, scaling: float) -> torch.Tensor:
        """Return the sparse attention of prompts: (batch, num_tokens, num_heads, head_dim)."""
        import torch

        policy = self.policy
        assert isinstance(policy, CritiPrefill)
        num_blocks = policy.num_critical_blocks(attended[0].shape[2], self.budget)
        if at == policy.num_dense_layers:
            self._previous.clear()
        outputs = []
        for place, (q, k, v) in enumerate(zip(*attended, strict=True)):
            chosen, self._previous[place] = policy.select(q, k, num_blocks, self._previous.get(place))
            outputs.append(policy.attend(q, k, v, chosen, scaling).transpose(0, 1))
        return torch.stack(outputs).contiguous()


@contextmanager
def apply(model: Any, policy: str | Policy | CritiPrefill, budget: float) -> Iterator[AppliedPolicy]:  # noqa: ANN401 - a PreTrainedModel
    """Apply a policy to a Transformers model within the scope, generation included.

    A prompt is one forward whose queries are all its tokens; its attention is computed whole, and every later token attends to
    what the policy kept of it and to all that came after. Dropped tokens are masked, each head's own, so that results are those
    of a cache without them; the model's cache itself stays as it is, and so does its memory. At budget 1 the model computes what
    it computes without. Layers with a sliding window go on as before. CritiPrefill acts on prompts instead, and drops nothing.

    Args:
        model: A `PreTrainedModel` whose attention is `sdpa` or `eager`, with an `o_proj` in each attention module.
        policy: A policy, or its name in `POLICIES`.
        budget: Share of each prompt's tokens that are kept, the mean over heads.

    Yields:
        What is kept, filled as the model runs.

    Raises:
        InvalidInputError: There is no such policy, or the budget does not lie above 0 and up to 1. In the scope: it has no room
            for the window, or prompts are padded.
        UnsupportedModelError: The model's attention cannot be reached, or a policy is applied to it already.

    Examples:
        >>> with dooly.kv.apply(model, "laprox", 0.2) as applied:
        ...     tokens = model.generate(prompt, max_new_tokens=64)
        >>> applied.kept.float().mean((0, 2, 3))  # what each layer keeps
    """
    check_budget(budget)
    applied = AppliedPolicy(find_policy(policy) if isinstance(policy, str) else policy, budget)
    modules = attention_modules(model)
    functions = {layer.module: partial(applied.attend, at, layer) for at, layer in enumerate(modules)}
    with attending(model, functions):
        yield applied


def _check_causal(mask: torch.Tensor) -> None:
    """Refuse prompts in which a token does not see all before it: those with padding, and several packed into one row."""
    import torch

    seen = mask if mask.dtype == torch.bool else mask >= 0
    if not seen.eq(seen.new_ones(seen.shape[-2:]).tril()).all():
        raise InvalidInputError("kv.apply: the prompts are padded or packed; give prompts of one length in a batch")
