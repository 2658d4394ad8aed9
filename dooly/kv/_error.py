"""What a policy does to the output of attention: the relative error after the output projection, by layer and head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from dooly.errors import InvalidInputError
from dooly.kv._critiprefill import CritiPrefill
from dooly.kv._interface import attending, attention_modules
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import Policy, with_window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from dooly.kv._interface import AttentionModule


@dataclass(frozen=True, slots=True)
class LayerError:
    """One layer's error, as shares of the norm of its whole attention's output."""

    output: float
    """Over all later tokens: ||O_full - O_kept|| / ||O_full||, Frobenius, after the output projection."""
    worst: float
    """The largest of a single later token."""
    window: float
    """Over the window's own tokens, which a policy goes by; that of the later tokens is what came of it."""
    heads: tuple[float, ...]
    """Over all later tokens, of each query head's own part of the output."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """The errors of one policy at one budget on one text."""

    policy: str
    """Its name."""
    budget: float
    """Share of the tokens that are kept."""
    num_tokens: int
    """Tokens of the prompt."""
    seed: int | None
    """Seed of weights and text; None for weights and a text that were given."""
    layers: tuple[LayerError, ...]
    """By layer."""

    @property
    def output(self) -> float:
        """The mean over layers."""
        return sum(layer.output for layer in self.layers) / len(self.layers)

    @property
    def worst(self) -> float:
        """The mean over layers of each one's worst token."""
        return sum(layer.worst for layer in self.layers) / len(self.layers)

    @property
    def window(self) -> float:
        """The mean over layers of the window's."""
        return sum(layer.window for layer in self.layers) / len(self.layers)


@dataclass(frozen=True, slots=True)
class CapturedLayer:
    """Attention inputs of one layer over a whole text, a prompt and what follows it."""

    queries: torch.Tensor
    """(num_heads, num_tokens, head_dim)."""
    keys: torch.Tensor
    """(num_kv_heads, num_tokens, head_dim)."""
    values: torch.Tensor
    """(num_kv_heads, num_tokens, head_dim)."""
    output_projection: torch.Tensor
    """(num_heads, head_dim, hidden_size)."""
    scaling: float
    """Factor of the logits."""

    def prompt(self, num_prompt: int, window_size: int) -> LayerInputs:
        """Return what a policy looks at."""
        window = self.queries[:, num_prompt - window_size : num_prompt]
        return LayerInputs(window, self.keys[:, :num_prompt], self.values[:, :num_prompt], self.output_projection, self.scaling)


def capture_attention(model: Any, tokens: torch.Tensor) -> tuple[CapturedLayer, ...]:  # noqa: ANN401 - a PreTrainedModel
    """Return the attention inputs of each layer without a sliding window, as a Transformers model computes them for one text.

    Args:
        model: A `PreTrainedModel`, as for `apply`.
        tokens: Its text: (1, num_tokens).

    Raises:
        InvalidInputError: It is not one text.
        UnsupportedModelError: The model's attention cannot be reached.
    """
    import torch

    if tokens.ndim != 2 or tokens.shape[0] != 1:  # noqa: PLR2004 - a batch of texts
        raise InvalidInputError(f"capture_attention: tokens of shape {tuple(tokens.shape)} are not one text, (1, num_tokens)")
    found: dict[nn.Module, CapturedLayer] = {}

    def keep(layer: AttentionModule, module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as called
        query, key, value = (tensor[0] for tensor in args[:3])
        found[module] = CapturedLayer(query, key, value, layer.output_projection, kwargs["scaling"])
        return layer.attend(module, *args, **kwargs)

    layers = attention_modules(model)
    with torch.no_grad(), attending(model, {layer.module: partial(keep, layer) for layer in layers}):
        model(tokens, use_cache=False)
    return tuple(found[layer.module] for layer in layers)


def output_errors(
    layers: Sequence[CapturedLayer],
    num_prompt: int,
    policies: Mapping[str, Policy | CritiPrefill],
    budgets: Sequence[float],
    seed: int | None = None,
) -> Iterator[OutputError]:
    """Yield the errors of policies at budgets, each layer's alone: what comes in is what whole attention computed.

    A policy that drops tokens sees the prompt, and its error is that of the tokens that follow it. CritiPrefill's is that of the
    prompt's own tokens.

    Args:
        layers: Attention inputs of the prompt and what follows it.
        num_prompt: Tokens of the prompt.
        policies: By name.
        budgets: Shares of the prompt's tokens.
        seed: To note.

    Raises:
        InvalidInputError: Nothing follows the prompt, or a budget is none.
    """
    import torch

    if not 0 < num_prompt < layers[0].keys.shape[1]:
        raise InvalidInputError(
            f"output_errors: a prompt of {num_prompt} of {layers[0].keys.shape[1]} tokens leaves none to follow"
        )
    later = [_Attended(layer, num_prompt, layer.keys.shape[1]) for layer in layers]
    for name, policy in policies.items():
        if isinstance(policy, CritiPrefill):
            for budget in budgets:
                yield OutputError(name, budget, num_prompt, seed, _prefill_errors(layers, num_prompt, policy, budget))
            continue
        for budget in budgets:
            policy.num_kept(num_prompt, budget)
        window = [_Attended(layer, num_prompt - policy.window_size, num_prompt) for layer in layers]
        scores = torch.stack([policy.score(layer.prompt(num_prompt, policy.window_size)) for layer in layers])
        for budget in budgets:
            num_kept = policy.num_kept(num_prompt, budget)
            kept = scores.new_ones(len(layers), scores.shape[2], num_prompt, dtype=torch.bool)
            if num_kept < num_prompt:
                kept = with_window(policy, scores, num_kept)
            yield OutputError(name, budget, num_prompt, seed, tuple(map(_error, later, window, kept)))


class _Attended:
    """The attention of some tokens of a text, with all keys before them and with some."""

    def __init__(self, layer: CapturedLayer, start: int, stop: int) -> None:
        num_kv_heads = layer.keys.shape[0]
        queries = layer.queries[:, start:stop].unflatten(0, (num_kv_heads, -1)).float()
        logits = queries @ layer.keys[:, :stop].float().transpose(1, 2)[:, None] * layer.scaling
        seen = logits.new_ones(logits.shape[-2:], dtype=bool).tril(start)
        self.logits = logits.masked_fill(~seen, -float("inf"))
        self.layer, self.stop = layer, stop
        self.whole = self._attend(self.logits)

    def _attend(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.softmax(-1) @ self.layer.values[:, : self.stop].float()[:, None]).flatten(0, 1)

    def compare(self, kept: torch.Tensor) -> _Comparison:
        """Return the error where each key/value head has the kept tokens of the prompt, (num_kv_heads, num_prompt)."""
        import torch

        seen = torch.cat([kept, kept.new_ones(kept.shape[0], self.stop - kept.shape[1])], -1)
        return _compare(self.whole, self._attend(self.logits.masked_fill(~seen[:, None, None], -torch.inf)), self.layer)


class _Comparison(NamedTuple):
    """Errors of one output beside another, relative to the other's norm."""

    output: float
    worst: float
    heads: tuple[float, ...]


def _error(later: _Attended, window: _Attended, kept: torch.Tensor) -> LayerError:
    if kept.all():
        return _no_error(later.whole.shape[0])
    found = later.compare(kept)
    return LayerError(found.output, found.worst, window.compare(kept).output, found.heads)


def _no_error(num_heads: int) -> LayerError:
    return LayerError(0.0, 0.0, 0.0, (0.0,) * num_heads)


def _compare(whole: torch.Tensor, kept: torch.Tensor, layer: CapturedLayer) -> _Comparison:
    """Return the error between two outputs of heads, each (num_heads, num_queries, head_dim)."""
    from torch import linalg

    projection = layer.output_projection.float()
    outputs, errors = (x.transpose(0, 1).flatten(1) @ projection.flatten(0, 1) for x in (whole, whole - kept))
    norms, lost = (linalg.vector_norm(x, dim=1) for x in (outputs, errors))
    gram = projection @ projection.transpose(1, 2)
    by_head = [((x @ gram) * x).sum((1, 2)).clamp(min=0).sqrt() for x in (whole, whole - kept)]
    return _Comparison(
        float(linalg.vector_norm(lost) / linalg.vector_norm(norms)),
        float((lost / norms).max()),
        tuple((by_head[1] / by_head[0]).tolist()),
    )


def _prefill_errors(
    layers: Sequence[CapturedLayer], num_prompt: int, policy: CritiPrefill, budget: float
) -> tuple[LayerError, ...]:
    """Return the errors of a prompt's own tokens under sparse prefill; the window, in the last segment, has none."""
    errors, previous = [], None
    dense = replace(policy, num_dense_tokens=num_prompt)
    for at, layer in enumerate(layers):
        queries, keys, values = (x[:, :num_prompt] for x in (layer.queries, layer.keys, layer.values))
        if budget == 1 or at < policy.num_dense_layers:
            errors.append(_no_error(queries.shape[0]))
            continue
        chosen, previous = policy.select(queries, keys, policy.num_critical_blocks(num_prompt, budget), previous)
        sparse, whole = (p.attend(queries, keys, values, chosen, layer.scaling) for p in (policy, dense))
        found = _compare(whole.float(), sparse.float(), layer)
        errors.append(LayerError(found.output, found.worst, 0.0, found.heads))
    return tuple(errors)
