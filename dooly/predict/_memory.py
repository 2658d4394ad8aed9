"""How much of a device's memory is left for the KV cache, as vLLM works it out: what may be used, less weights and work space."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from dooly.dtypes import cache_item_bytes, item_bytes
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.tracing import evaluate_form

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.engines import ServingConfig
    from dooly.predict._hardware import Hardware
    from dooly.tracing import TracedModel, TracedTensor

_CONTEXT_BYTES = 1 << 30
"""What CUDA, its libraries and the engine's captured graphs take beside tensors: taken to be 1 GiB."""
_HIDDEN_COPIES = 4
"""Hidden states that live beside an operation's own operands while it runs: residual, embeddings, two in flight."""


def token_bytes(traced: TracedModel, dtype: str) -> int:
    """Return the bytes of one token's keys and values over all layers of a rank.

    Raises:
        UnsupportedModelError: A layer caches something else than the keys and values of every token, or none caches anything.
    """
    cached = [operation for operation in traced.operations if operation.depends_on_context]
    for operation in cached:
        if (other := _other_cache(operation.attributes)) is not None:
            layers = operation.module if operation.count == 1 else f"{operation.module} and {operation.count - 1} like it"
            raise UnsupportedModelError(
                f"{traced.model}: {layers} {other}, whose KV cache groups the scheduler does not model yet; "
                "simulate a model with full attention"
            )
    if not cached:
        raise UnsupportedModelError(f"{traced.model}: no layer keeps a KV cache; simulate a model that generates by attention")
    return sum(operation.count * _cached_bytes(operation.attributes, dtype) for operation in cached)


def _other_cache(attributes: Mapping[str, Any]) -> str | None:
    """Return what a layer does by which its cache is not one of each token's keys and values; None where it is."""
    if "state_shapes" in attributes:
        return "keeps a recurrent state"
    if attributes.get("num_kv_heads") is None:
        return f"keeps a cache of its own ({attributes.get('kind')})"
    if attributes.get("sliding_window") not in {None, -1}:
        return "attends over a sliding window"
    if attributes.get("attention_chunk_size") is not None:
        return "attends within chunks"
    if attributes.get("attn_type") not in {None, "decoder"}:
        return f"runs {attributes['attn_type']} attention"
    return None


def _cached_bytes(attributes: Mapping[str, Any], dtype: str) -> int:
    """Return the bytes of one token's keys and values in one layer; keys alone where values are part of them."""
    values = attributes["num_kv_heads"] * (attributes["head_size"] + (attributes["head_size_v"] or 0))
    return int(values * cache_item_bytes(attributes["kv_cache_dtype"], dtype))


def weight_bytes(traced: TracedModel) -> int:
    """Return the bytes of one rank's parameters, each counted once: a layer's for every layer, a tied one for all its readers."""
    sizes: dict[str, int] = {}
    for operation in traced.operations:
        for tensor in operation.inputs:
            if tensor.is_parameter:
                # A buffer without a name, such as a rotary table, is shared by all layers.
                name = tensor.parameter or f"{operation.signature} buffer"
                sizes[name] = _bytes_at(tensor, 1) * (operation.count if tensor.parameter else 1)
    return sum(sizes.values())


def peak_activation_bytes(traced: TracedModel, serving: ServingConfig) -> int:
    """Return the most bytes that a step's activations take at the engine's limits: its largest operation's and hidden states."""
    peak = hidden = 0
    for operation in traced.operations:
        if operation.stage != "engine":
            size = serving.max_num_batched_tokens if operation.stage == "decoder" else serving.max_num_seqs
            operands = [t for t in (*operation.inputs, *operation.outputs) if not t.is_parameter]
            peak = max(peak, sum(_bytes_at(t, size) for t in operands))
            if operation.module_class == "RMSNorm":
                hidden = max(hidden, *(_bytes_at(t, size) for t in operands))
    return peak + _HIDDEN_COPIES * hidden


def _bytes_at(tensor: TracedTensor, size: int) -> int:
    """Return a tensor's bytes where each dimension that the request sets has one size."""
    known = {"num_tokens": size, "num_reqs": size}
    dims = (d.value if d.value is not None else int(evaluate_form(_plain(d.expr), known)) for d in tensor.shape)
    return prod(dims) * item_bytes(tensor.dtype)


def _plain(expression: str) -> str:
    """Return a dimension's expression where it is one of an engine's, else the number of tokens: others are rare and small."""
    return expression if expression in {"num_tokens", "num_reqs"} else "num_tokens"


def cache_room_bytes(traced: TracedModel, serving: ServingConfig, hardware: Hardware) -> int:
    """Return the bytes that a rank's KV cache gets.

    Raises:
        InvalidInputError: The weights leave no room.
    """
    usable = int(hardware.memory_bytes * serving.gpu_memory_utilization)
    weights, activations = weight_bytes(traced), peak_activation_bytes(traced, serving)
    room = usable - weights - activations - _CONTEXT_BYTES
    if room <= 0:
        raise InvalidInputError(
            f"{traced.model}: its weights take {weights / 1e9:.1f} GB of a rank, {hardware.name} gives "
            f"{usable / 1e9:.1f} GB (--gpu-memory-utilization {serving.gpu_memory_utilization}); "
            "raise --tensor-parallel-size"
        )
    return room
