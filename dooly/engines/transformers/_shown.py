"""Show to hooks and traces what Transformers runs between its modules: attention with its paged cache, and the choice of tokens.

Neither changes what runs: attention goes through a module that calls the function that it would call, and tokens are chosen by
the model runner's own function, whose `self` is a module.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Scalar = bool | int | float | str | None

_IMPLEMENTATION = "dooly_paged"
"""Name by which Transformers finds the attention below."""
_CHILD = "paged_attention"


@torch.library.custom_op("dooly::paged_attention", mutates_args=())
def _stand_in(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Stand for attention in graphs, which stop before anything runs."""
    raise NotImplementedError


@_stand_in.register_fake
def _shape(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[3])


class PagedAttention(nn.Module):
    """The call of scaled dot-product attention within an attention module, as a module of its own."""

    def __init__(self, attributes: Mapping[str, Scalar]) -> None:
        super().__init__()
        self.attributes = dict(attributes)
        """What identifies the operation."""

    def forward(self, owner: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Transformers calls it
        """Run attention for the module that holds this one; on the meta device, stand for it."""
        query, key, value = args[:3]
        if query.device.type == "meta":
            return _stand_in(query, key, value), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(owner, *args, **kwargs)


class GreedySampler(nn.Module):
    """Chooses each request's likeliest token: the function of Transformers' model runner, whose `self` this is."""

    do_sample = False
    return_logprobs = False

    def forward(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Write the tokens chosen by scores of shape (1, num_reqs, vocab_size) to the first row of `output_ids`."""
        from transformers.generation.continuous_batching.model_runner import ModelRunner

        ModelRunner._sample(self, scores, output_ids)  # type: ignore[arg-type]  # noqa: SLF001 - has no public name


def show_attention(network: Any) -> None:  # noqa: ANN401 - a PreTrainedModel
    """Have each attention module call its attention through a child; a first forward adds the children."""
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _attend)
    network.config._attn_implementation = _IMPLEMENTATION  # noqa: SLF001 - set_attn_implementation checks what a hub offers
    network.config.get_text_config()._attn_implementation = _IMPLEMENTATION  # noqa: SLF001


def shown_attributes(module: nn.Module) -> dict[str, Scalar] | None:
    """Return what identifies a module that this file made, or None for any other module."""
    if isinstance(module, GreedySampler):
        return {"kind": "Sampler", "sampling": "greedy"}
    return module.attributes if isinstance(module, PagedAttention) else None


@contextmanager
def watch_attention(network: nn.Module, enter: Callable[[str], None], leave: Callable[[str], None]) -> Iterator[None]:
    """Call back, within the scope, before and after each call of attention, with its module's path."""
    shown = [(path, module) for path, module in network.named_modules() if isinstance(module, PagedAttention)]
    handles = [module.register_forward_pre_hook(lambda *_, path=path: enter(path)) for path, module in shown]
    handles += [module.register_forward_hook(lambda *_, path=path: leave(path)) for path, module in shown]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attend(module: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as Transformers calls it
    child = module._modules.get(_CHILD)  # noqa: SLF001 - holds children by name
    if child is None:
        child = PagedAttention(_attributes(args[0], args[1], args[2], kwargs))
        module.add_module(_CHILD, child)
    return child(module, *args, **kwargs)


def _attributes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return what identifies a call of attention over queries, keys and values of shape (1, num_heads, num_tokens, head_size)."""
    return {
        "kind": "PagedAttention",
        "num_heads": query.shape[1],
        "num_kv_heads": key.shape[1],
        "head_size": query.shape[-1],
        "head_size_v": value.shape[-1],
        "scale": kwargs.get("scaling"),
        "sliding_window": kwargs.get("sliding_window"),
        "kv_cache_dtype": str(key.dtype).removeprefix("torch."),
        "spans_batch": True,
    }
