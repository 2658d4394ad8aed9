"""How an engine lays out the KV cache of a model: its groups of layers, and what a block of them takes in memory.

Follows vLLM (0.32). Layers that keep the same tokens form groups of equal numbers of layers, so that one block of any group takes
the same room. A recurrent state fills one block, whose attention layers hold as many tokens as fit the same room.
"""

from __future__ import annotations

from ast import literal_eval
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from dooly.dtypes import cache_item_bytes, item_bytes
from dooly.errors import UnsupportedModelError
from dooly.kv_cache_groups import AttentionKind, KVCacheGroup

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.tracing import TracedModel, TracedOperation

_PADDED_BELOW = 1.5
"""How many times the fewest layers of a kind the most may be for all groups to get the most, some layers of theirs void."""
_LATENT_BLOCK_SIZE = 128
"""What the blocks of latent attention beside recurrent states are a multiple of."""


@dataclass(frozen=True, slots=True)
class KVCacheLayout:
    """The KV cache of one rank."""

    groups: tuple[KVCacheGroup, ...]
    """Its groups, in the order of their first layers."""
    block_size: int
    """Tokens in a block of an attention layer."""
    block_bytes: int
    """What a block takes, over the layers of a group."""


def kv_cache_layout(traced: TracedModel, dtype: str, block_size: int) -> KVCacheLayout:
    """Return how the engine lays out a model's KV cache on one rank.

    Args:
        traced: The model's table of operations.
        dtype: Element type of activations, which a cache of type `auto` has too.
        block_size: Tokens in a block; more are taken where a recurrent state fills more room.

    Raises:
        UnsupportedModelError: A layer caches something else than keys and values or a recurrent state, none caches anything, or
            layers of several kinds take unequal room.
    """
    layers = [op for op in traced.operations if op.depends_on_context]
    if not layers:
        raise UnsupportedModelError(f"{traced.model}: no layer keeps a KV cache; simulate a model that generates by attention")
    kinds = [_kind(traced, layer) for layer in layers]
    state_bytes = max((_state_bytes(layer.attributes) for layer in layers if _is_recurrent(layer)), default=0)
    token_bytes = [0 if _is_recurrent(layer) else _token_bytes(layer.attributes, dtype) for layer in layers]
    if state_bytes and any(token_bytes):
        least = min(filter(None, token_bytes))
        unit = max(block_size, _LATENT_BLOCK_SIZE) if any("kv_lora_rank" in layer.attributes for layer in layers) else block_size
        block_size = unit * -(-state_bytes // (unit * least))
        state_bytes = block_size * least
    pages = [block_size * of_token or state_bytes for of_token in token_bytes]
    counts: dict[KVCacheGroup, int] = {}
    for kind, layer in zip(kinds, layers, strict=True):
        counts[kind] = counts.get(kind, 0) + layer.count
    if len(counts) == 1:
        return KVCacheLayout((*counts,), block_size, sum(p * layer.count for p, layer in zip(pages, layers, strict=True)))
    if len({*pages}) > 1:
        rooms = ", ".join(f"{page} bytes of {layer.module}" for page, layer in zip(pages, layers, strict=True))
        raise UnsupportedModelError(
            f"{traced.model}: layers that keep different tokens take unequal room ({rooms} a block), whose KV cache groups the "
            "scheduler does not model yet; simulate a model whose layers cache alike"
        )
    fewest, most = min(counts.values()), max(counts.values())
    size = most if most < fewest * _PADDED_BELOW else fewest
    numbers = {kind: -(-count // size) for kind, count in counts.items()}
    groups = tuple(kind for kind, number in numbers.items() for _ in range(number))
    return KVCacheLayout(groups, block_size, pages[0] * max(-(-counts[kind] // number) for kind, number in numbers.items()))


def _kind(traced: TracedModel, layer: TracedOperation) -> KVCacheGroup:
    """Return what the layers of an operation keep."""
    attributes = layer.attributes
    if _is_recurrent(layer):
        # The kernels of one kind can leave the state within a prefill, and need a block for that.
        return KVCacheGroup(AttentionKind.MAMBA, None, int("mamba2" in str(attributes.get("mamba_type"))))
    other = None
    if attributes.get("num_kv_heads") is None:
        other = f"keeps a cache of its own ({attributes.get('kind')})"
    elif attributes.get("attn_type") not in {None, "decoder"}:
        other = f"runs {attributes['attn_type']} attention"
    if other is not None:
        layers = layer.module if layer.count == 1 else f"{layer.module} and {layer.count - 1} like it"
        raise UnsupportedModelError(
            f"{traced.model}: {layers} {other}, which the scheduler does not model yet; simulate a model that generates by "
            "attention"
        )
    contexts = [op.attributes for op in traced.operations if op.depends_on_context and not _is_recurrent(op)]
    if any(_chunk(other) for other in contexts) and not all(_chunk(other) for other in contexts):
        return KVCacheGroup()  # beside chunks, vLLM keeps all tokens of all layers, for their latency
    if chunk := _chunk(attributes):
        return KVCacheGroup(AttentionKind.CHUNKED_LOCAL_ATTENTION, chunk)
    window = attributes.get("sliding_window")
    return KVCacheGroup() if window in {None, -1} else KVCacheGroup(AttentionKind.SLIDING_WINDOW, window)


def _chunk(attributes: Mapping[str, Any]) -> int | None:
    return attributes.get("attention_chunk_size")


def _is_recurrent(layer: TracedOperation) -> bool:
    return "state_shapes" in layer.attributes


def _state_bytes(attributes: Mapping[str, Any]) -> int:
    """Return the bytes of a recurrent layer's state."""
    shapes, dtypes = literal_eval(f"[{attributes['state_shapes']}]"), attributes["state_dtypes"].split(", ")
    return sum(prod(shape) * item_bytes(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))


def _token_bytes(attributes: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of one token's keys and values in one layer; keys alone where values are part of them."""
    values = attributes["num_kv_heads"] * (attributes["head_size"] + (attributes["head_size_v"] or 0))
    return int(values * cache_item_bytes(attributes["kv_cache_dtype"], dtype))
