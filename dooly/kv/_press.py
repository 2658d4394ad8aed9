"""A policy as a press of kvpress (NVIDIA, Apache-2.0), whose pipelines and evaluations then run it; loads kvpress when asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.kv._interface import whole_attention
from dooly.kv._layer import LayerInputs
from dooly.kv._policy import Policy, with_window
from dooly.kv._registry import find_policy
from dooly.kv_policy import check_budget

if TYPE_CHECKING:
    import torch
    from torch import nn


def as_press(policy: str | Policy, budget: float) -> Any:  # noqa: ANN401 - a kvpress.BasePress
    """Return a policy as a press: `with press(model): ...` drops tokens from the model's cache as prompts are computed.

    Where all heads keep as many tokens the cache gets shorter. Where they do not, it stays as it is and kvpress masks what is
    dropped, as it does for Ada-KV; a policy of the whole model chooses when the last layer is there. Layers with a sliding window
    stay as they are.

    Args:
        policy: A policy that drops tokens, or its name.
        budget: Share of a prompt's tokens that are kept; kvpress knows it as 1 less `compression_ratio`.

    Raises:
        InvalidInputError: There is no such policy or budget, or it drops nothing.
        ModuleNotFoundError: kvpress is not installed. 0.5.5 runs with Transformers 4.56 to below 5.3.

    Examples:
        >>> with dooly.kv.as_press("laprox", 0.2)(model):
        ...     tokens = model.generate(prompt, max_new_tokens=64)
    """
    found = find_policy(policy) if isinstance(policy, str) else policy
    check_budget(budget)
    if not isinstance(found, Policy):
        raise InvalidInputError("as_press: critiprefill drops nothing; use dooly.kv.apply")
    return _press_class()(found, budget)


@dataclass
class _Compressing:
    """What a press does: it keeps of a prompt what a policy chooses."""

    policy: Policy
    """The policy."""
    budget: float
    """Share of a prompt's tokens that are kept."""
    _scored: list[tuple[nn.Module, torch.Tensor]] = field(default_factory=list, repr=False)
    """Attention modules of the prompt at hand, with the scores of each: (batch, num_scores, num_kv_heads, num_past)."""
    _modules: tuple[nn.Module, ...] = field(default=(), repr=False)
    """The attention modules that the policy acts on."""

    @property
    def compression_ratio(self) -> float:
        """Share of a prompt's tokens that are dropped."""
        return 1 - self.budget

    @compression_ratio.setter
    def compression_ratio(self, ratio: float) -> None:
        check_budget(1 - ratio)
        self.budget = 1 - ratio

    def post_init_from_model(self, model: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
        """Learn which layers the policy acts on."""
        self._modules = whole_attention(model)

    def compress(  # noqa: PLR0913, PLR0917 - as kvpress calls it
        self,
        module: nn.Module,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor | None,  # noqa: ARG002 - kvpress hands it over
        kwargs: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is left of one layer's keys and values, or have kvpress mask the rest of all layers."""
        num_kept = self.policy.num_kept(keys.shape[2], self.budget)
        if num_kept == keys.shape[2] or module not in self._modules:
            return keys, values
        queries = _window_queries(module, hidden_states, self.policy.window_size, kwargs["position_embeddings"])
        scores = self._score(module, queries, keys, values)
        if self.policy.is_even:
            return _gathered(self._kept([scores], num_kept)[:, 0], keys, values)
        if module is self._modules[0]:
            self._scored.clear()
        self._scored.append((module, scores))
        if len(self._scored) == len(self._modules):
            kept = self._kept([layer for _, layer in self._scored], num_kept)
            for at, (scored, _) in enumerate(self._scored):
                scored.masked_key_indices = (~kept[:, at]).nonzero(as_tuple=True)  # type: ignore[assignment]
            self._scored.clear()
        return keys, values

    def _score(self, module: nn.Module, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = module.o_proj.weight.detach()  # type: ignore[union-attr, operator]
        projection = weight.T.reshape(queries.shape[1], -1, weight.shape[0])
        rows = zip(queries, keys, values, strict=True)
        return _stacked([self.policy.score(LayerInputs(*row, projection, float(module.scaling))) for row in rows])  # type: ignore[arg-type]

    def _kept(self, layers: list[torch.Tensor], num_kept: int) -> torch.Tensor:
        """Return whether tokens are kept, by the scores of layers: (batch, num_layers, num_kv_heads, num_tokens)."""
        batch = zip(*layers, strict=True)
        return _stacked([with_window(self.policy, _stacked(list(request)), num_kept) for request in batch])


@cache
def _press_class() -> Any:  # noqa: ANN401 - a class
    """Return the class of presses, made when kvpress is first asked for."""
    from kvpress import BasePress

    return type("PolicyPress", (_Compressing, BasePress), {"__doc__": "Keeps of a prompt what a policy chooses."})


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return torch.stack(tensors)


def _gathered(kept: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of keys and values that are kept, of each head as many, in their order."""
    sizes = (*kept.shape[:2], -1)
    return tuple(tensor[kept].reshape(*sizes, tensor.shape[3]) for tensor in (keys, values))  # type: ignore[return-value]


def _window_queries(
    module: Any,  # noqa: ANN401 - an attention module
    hidden_states: torch.Tensor,
    window_size: int,
    embeddings: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Return the queries of a prompt's last tokens with rotary embeddings: (batch, num_heads, window_size, head_dim).

    Raises:
        UnsupportedModelError: The module has no projection of queries alone.
    """
    import torch

    if not hasattr(module, "q_proj"):
        raise UnsupportedModelError(f"{type(module).__name__}: has no q_proj; use a Llama-like model")
    queries = module.q_proj(hidden_states[:, -window_size:]).unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    if hasattr(module, "q_norm"):
        queries = module.q_norm(queries)
    cos, sin = (angles[:, None, -window_size:] for angles in embeddings)
    first, second = queries.chunk(2, -1)
    turned: torch.Tensor = queries * cos + torch.cat([-second, first], -1) * sin
    return turned
