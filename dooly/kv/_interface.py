"""Where a Transformers model lets others compute its attention: functions of ours in the place of its own, for a while."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch import nn

    Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
    """What Transformers calls: (module, query, key, value, attention_mask, scaling=..., ...) -> (output, weights)."""

_BASES = ("sdpa", "eager")
"""Implementations that take a mask for each head."""
_IN_PLACE: WeakKeyDictionary[nn.Module, Attention] = WeakKeyDictionary()
"""What computes an attention module's call instead of the model's own function."""


@dataclass(frozen=True, slots=True)
class AttentionModule:
    """An attention module whose layer keeps all tokens: one without a sliding window."""

    module: nn.Module
    """The module."""
    attend: Attention
    """What the model itself computes its attention with."""

    @property
    def output_projection(self) -> torch.Tensor:
        """The rows that each head feeds: (num_heads, head_dim, hidden_size)."""
        weight: torch.Tensor = self.module.o_proj.weight  # type: ignore[union-attr, assignment]
        head_dim: int = self.module.head_dim  # type: ignore[assignment]
        return weight.detach().T.reshape(-1, head_dim, weight.shape[0])


def attention_modules(model: Any) -> tuple[AttentionModule, ...]:  # noqa: ANN401 - a PreTrainedModel
    """Return the attention modules of a Transformers model in the order of its layers, those with a sliding window left out.

    Raises:
        UnsupportedModelError: The model's attention takes no mask, has other parts, or is computed in such a scope already.
    """
    name = type(model).__name__
    base = getattr(getattr(model, "config", None), "_attn_implementation", None)  # Transformers' name for it
    if base is None:
        raise UnsupportedModelError(f"{name}: is no Transformers model; use a Llama-like PreTrainedModel")
    if base in map(_name, _BASES):
        raise UnsupportedModelError(f"{name}: a policy is applied to it already; leave that scope first")
    if base not in _BASES:
        raise UnsupportedModelError(
            f"{name}: attention implementation {base!r} takes no mask for each head; call model.set_attn_implementation('sdpa')"
        )
    return tuple(AttentionModule(module, _own_attention(module, base)) for module in whole_attention(model))


def whole_attention(model: Any) -> tuple[nn.Module, ...]:  # noqa: ANN401 - a PreTrainedModel
    """Return the modules of a Transformers model whose attention is over all tokens, in the order of its layers.

    Raises:
        UnsupportedModelError: There is none.
    """
    found = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "o_proj") and hasattr(m, "head_dim")]
    # Where layers differ each module knows its window; where all have one, the configuration alone does.
    whole = [m for m in found if getattr(m, "sliding_window", getattr(m.config, "sliding_window", None)) is None]
    if not whole:
        raise UnsupportedModelError(
            f"{type(model).__name__}: none of its modules is an attention over all tokens with head_dim and o_proj; use a "
            "Llama-like model"
        )
    return tuple(sorted(whole, key=lambda m: m.layer_idx))


def _own_attention(module: nn.Module, base: str) -> Attention:
    """Return what a module's own code calls for an implementation; `eager` lies beside its class."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    own = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend: Attention | None = ALL_ATTENTION_FUNCTIONS.get(base, own)
    if attend is None:
        raise UnsupportedModelError(f"{type(module).__name__}: has no eager attention of its own; use 'sdpa'")
    return attend


@contextmanager
def attending(model: Any, functions: Mapping[nn.Module, Attention]) -> Iterator[None]:  # noqa: ANN401 - a PreTrainedModel
    """Have functions compute the attention of a model's modules within the scope; modules without one go on as before.

    Raises:
        UnsupportedModelError: The model's attention does not go through Transformers' interface.
    """
    base = model.config._attn_implementation  # noqa: SLF001 - as above
    name = _register(base)
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:  # noqa: SLF001 - as above
        raise UnsupportedModelError(f"{type(model).__name__}: does not compute its attention through Transformers' interface")
    _IN_PLACE.update(functions)
    try:
        yield
    finally:
        for module in functions:
            _IN_PLACE.pop(module, None)
        model.set_attn_implementation(base)


def _register(base: str) -> str:
    """Make an implementation known that looks for functions in place, and return its name; masks are those of the base."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    def attend(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:  # noqa: ANN401 - as called
        return (_IN_PLACE.get(module) or _own_attention(module, base))(module, *args, **kwargs)

    name = _name(base)
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


def _name(base: str) -> str:
    return f"dooly_{base}"
