"""How much of a device's memory is left for the KV cache, as vLLM works it out: what may be used, less weights and work space."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from dooly.dtypes import item_bytes
from dooly.errors import InvalidInputError
from dooly.tracing import evaluate_form, layer_of

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.predict._hardware import Hardware
    from dooly.tracing import TracedModel, TracedTensor

_CONTEXT_BYTES = 1 << 30
"""What CUDA, its libraries and the engine's captured graphs take beside tensors: taken to be 1 GiB."""
_HIDDEN_COPIES = 4
"""Hidden states that live beside an operation's own operands while it runs: residual, embeddings, two in flight."""


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
    """Return the most bytes that a step's activations take at the engine's limits: its largest operation's and hidden states.

    Hidden states are what leaves the operations outside of all layers: the embedding and the last norm.
    """
    peak = hidden = 0
    for operation in traced.operations:
        if operation.stage != "engine":
            size = serving.max_num_batched_tokens if operation.stage == "decoder" else serving.max_num_seqs
            operands = [_bytes_at(t, size) for t in (*operation.inputs, *operation.outputs) if not t.is_parameter]
            if operation.stage == "sample":  # beside the logits, the engine keeps them in float32
                operands += [_bytes_at(replace(t, dtype="float32"), size) for t in operation.inputs]
            peak = max(peak, sum(operands))
            if operation.stage == "decoder" and layer_of(operation.module) is None:
                hidden = max(hidden, *(_bytes_at(t, size) for t in operation.outputs))
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


def num_kv_blocks(traced: TracedModel, serving: ServingConfig, block_bytes: int, hardware: Hardware | None) -> int:
    """Return how many KV blocks of so many bytes a rank has, unless it is told; `hardware` is a device that ships, or None.

    Raises:
        InvalidInputError: `kv_cache_memory_bytes` is more than the device has, or the weights leave no room.
    """
    if hardware is not None and serving.kv_cache_bytes > hardware.memory_bytes:
        raise InvalidInputError(
            f"--kv-cache-memory-bytes: {serving.kv_cache_bytes} are more than the {hardware.memory_bytes} that "
            f"{hardware.name} has; give less, or leave it out"
        )
    if hardware is not None and serving.kv_cache_memory_bytes is None:
        return cache_room_bytes(traced, serving, hardware) // block_bytes
    return serving.kv_cache_bytes // block_bytes
