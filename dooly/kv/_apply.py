"""A policy at work in a Transformers model: prompts are scored as they are computed, and later tokens attend to what is kept."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dooly.errors import InvalidInputError, UnsupportedModelError
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
    from transformers import Cache

    Prompts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """Queries, keys and values of a batch of prompts, each (batch, heads, num_tokens, head_dim); of queries the last alone."""
    Attended = tuple[torch.Tensor, torch.Tensor | None]


@dataclass(slots=True)
class _Prompt:
    """The prompts of one cache: what is computed of them until a token comes alone, and then what is kept."""

    num_tokens: int = 0
    """Tokens of each."""
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    """The last queries of each layer, as many as the window has: (batch, num_heads, up to window_size, head_dim)."""
    scores: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    """What each layer's tokens are chosen by, one tensor a request."""
    kept: torch.Tensor | None = None
    """As `AppliedPolicy.kept`."""


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
    _prompts: WeakKeyDictionary[Cache, _Prompt] = field(default_factory=WeakKeyDictionary)
    _previous: dict[int, torch.Tensor] = field(default_factory=dict)
    _cache: Cache | None = None
    _num_before: int = 0

    def enter(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ANN401 - a hook
        """Note the cache that an attention module is called with, and how many tokens it holds of the module's layer."""
        from transformers import Cache

        self._cache = next((given for given in (*args, *kwargs.values()) if isinstance(given, Cache)), None)
        self._num_before = 0 if self._cache is None else int(self._cache.get_seq_length(module.layer_idx))

    def attend(self, at: int, layer: AttentionModule, module: nn.Module, *args: Any, **kwargs: Any) -> Attended:  # noqa: ANN401 - as called
        """Compute the attention of the module that is number `at` among those of the policy."""
        cache, self._cache = self._cache, None
        if self.budget == 1:
            return layer.attend(module, *args, **kwargs)
        query, key, value, mask, *more = args
        if key.shape[2] != self._num_before + query.shape[2]:
            raise UnsupportedModelError(
                f"kv.apply: a cache gives {key.shape[2]} keys for {self._num_before + query.shape[2]} tokens; use one that holds "
                "what it was given, as DynamicCache, and no sliding window"
            )
        if isinstance(self.policy, CritiPrefill):
            if not self._is_sparse(at, query, mask):
                return layer.attend(module, *args, **kwargs)
            return self._prefill(at, (query, key, value), kwargs["scaling"]), None
        if cache is None:
            raise UnsupportedModelError(
                f"kv.apply: {type(self.policy).__name__} keeps tokens of a cache; call with use_cache=True"
            )
        prompt = self._prompt(at, cache)
        if at == 0 and prompt.kept is None and prompt.num_tokens and query.shape[2] == 1:
            self.kept = prompt.kept = self._choose(prompt)
        if prompt.kept is not None:
            mask = _mask(prompt.kept[:, at], query, key, mask)
        else:
            if mask is not None:
                _check_causal(mask)
            self._score(prompt, at, (query, key, value), layer.output_projection, kwargs["scaling"])
        return layer.attend(module, query, key, value, mask, *more, **kwargs)

    def _prompt(self, at: int, cache: Cache) -> _Prompt:
        """Return what is known of a cache's prompts."""
        if not self._num_before and at == 0:
            self.kept = None
            self._prompts[cache] = _Prompt()
        prompt = self._prompts.get(cache)
        known = 0 if prompt is None else prompt.num_tokens
        if prompt is None or (at == 0 and (self._num_before < known or (prompt.kept is None and self._num_before > known))):
            raise InvalidInputError(
                f"kv.apply: a cache holds {self._num_before} tokens where {known} of its prompt were computed in the scope; "
                "compute prompts in it, whole, and leave their caches as they are"
            )
        return prompt

    def _score(self, prompt: _Prompt, at: int, attended: Prompts, projection: torch.Tensor, scaling: float) -> None:
        """Score one layer's prompts as far as they are computed; which tokens are kept is chosen when a token comes alone."""
        import torch

        assert isinstance(self.policy, Policy)
        query, key, value = attended
        before = [prompt.queries[at]] if at in prompt.queries else []
        prompt.num_tokens, prompt.queries[at] = key.shape[2], torch.cat([*before, query], 2)[:, :, -self.policy.window_size :]
        if key.shape[2] > self.policy.window_size:
            rows = zip(prompt.queries[at], key, value, strict=True)
            prompt.scores[at] = [self.policy.score(LayerInputs(*row, projection, scaling)) for row in rows]

    def _choose(self, prompt: _Prompt) -> torch.Tensor:
        """Return what is kept of prompts that are whole: (batch, num_layers, num_kv_heads, num_tokens)."""
        import torch

        assert isinstance(self.policy, Policy)
        num_kept = self.policy.num_kept(prompt.num_tokens, self.budget)
        requests = zip(*(prompt.scores[at] for at in sorted(prompt.scores)), strict=True)
        kept = torch.stack([with_window(self.policy, torch.stack(layers), num_kept) for layers in requests])
        prompt.scores.clear()
        prompt.queries.clear()
        return kept

    def _is_sparse(self, at: int, query: torch.Tensor, mask: torch.Tensor | None) -> bool:
        """Return whether CritiPrefill computes a layer's attention."""
        assert isinstance(self.policy, CritiPrefill)
        num_tokens = self._num_before + query.shape[2]
        if query.shape[2] == 1 or self.policy.is_whole(num_tokens):
            return False
        if self._num_before:
            raise InvalidInputError(
                f"kv.apply: CritiPrefill computes prompts in one forward, and {query.shape[2]} tokens follow {self._num_before}; "
                "leave out prefill_chunk_size, and give more tokens one by one"
            )
        if mask is not None:
            _check_causal(mask)
        return at >= self.policy.num_dense_layers

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

    A prompt is all that a cache is given before the first token that comes alone, in one forward or in chunks; a last chunk of
    one token counts as such. Its attention is computed whole, and every later token attends to what the policy kept of it and to
    all that came after. Dropped tokens are masked, each head's own, so that results are those of a cache without them; the
    model's cache itself stays as it is, and so does its memory. At budget 1 the model computes what it computes without. Layers
    with a sliding window go on as before. CritiPrefill acts on prompts instead, each in one forward, and drops nothing.

    Args:
        model: A `PreTrainedModel` whose attention is `sdpa` or `eager`, with an `o_proj` in each attention module.
        policy: A policy, or its name in `POLICIES`.
        budget: Share of each prompt's tokens that are kept, the mean over heads.

    Yields:
        What is kept, filled as the model runs.

    Raises:
        InvalidInputError: There is no such policy, or the budget does not lie above 0 and up to 1. In the scope: it has no room
            for the window, prompts are padded, a cache was filled elsewhere or cut, or CritiPrefill gets a prompt in chunks.
        UnsupportedModelError: The model's attention cannot be reached, or a policy is applied to it already. In the scope: there
            is no cache, or one that gives other keys than it was given, as `StaticCache`.

    Examples:
        >>> with dooly.kv.apply(model, "laprox", 0.2) as applied:
        ...     tokens = model.generate(prompt, max_new_tokens=64)
        >>> applied.kept.float().mean((0, 2, 3))  # what each layer keeps
    """
    check_budget(budget)
    applied = AppliedPolicy(find_policy(policy) if isinstance(policy, str) else policy, budget)
    modules = attention_modules(model)
    functions = {layer.module: partial(applied.attend, at, layer) for at, layer in enumerate(modules)}
    with ExitStack() as hooks, attending(model, functions):
        for layer in modules:
            hooks.callback(layer.module.register_forward_pre_hook(applied.enter, with_kwargs=True).remove)
        yield applied


def _mask(kept: torch.Tensor, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return a mask for each head in which a request's dropped tokens are left out: (batch, num_heads, queries, keys).

    Args:
        kept: Whether each token of the prompts is kept in the layer: (batch, num_kv_heads, num_prompt).
        query: (batch, num_heads, queries, head_dim).
        key: (batch, num_kv_heads, keys, head_dim).
        mask: The model's own.
    """
    import torch

    num_queries, num_keys = query.shape[2], key.shape[2]
    after = kept.new_ones(*kept.shape[:2], num_keys - kept.shape[2])
    seen = torch.cat([kept, after], -1).repeat_interleave(query.shape[1] // key.shape[1], 1)[:, :, None]
    if mask is None:
        return seen & seen.new_ones(num_queries, num_keys).tril(num_keys - num_queries)
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _check_causal(mask: torch.Tensor) -> None:
    """Refuse prompts in which a token does not see all before it: those with padding, and several packed into one row."""
    import torch

    seen = mask if mask.dtype == torch.bool else mask >= 0
    if not seen.eq(seen.new_ones(seen.shape[-2:]).tril(seen.shape[-1] - seen.shape[-2])).all():
        raise InvalidInputError("kv.apply: the prompts are padded or packed; give prompts of one length in a batch")
