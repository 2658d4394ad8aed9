"""What stateful operations cost, and the request dimensions that they cost by. Holds no torch and no engine.

Request dimensions: `num_tokens` (queries of the step), `num_reqs` (requests of the step), `query_key_pairs` (keys that each query
attends to, summed over queries) and `kv_tokens` (distinct positions read, those of the step's own tokens among them, summed over
requests).
"""

from __future__ import annotations

from ast import literal_eval
from math import prod
from typing import TYPE_CHECKING, Any

from dooly.dtypes import cache_item_bytes, item_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sympy

    Cost = tuple[sympy.Expr, sympy.Expr]
    """Floating-point operations, and the least memory traffic in bytes."""


def state_cost(attributes: Mapping[str, Any]) -> Cost | None:
    """Return what one run of a stateful operation costs, or None for a kind without a closed form.

    Args:
        attributes: The engine's attributes of the operation, and the `dtype` of its activations.
    """
    if attributes.get("kv_lora_rank") is not None:
        return latent_attention_cost(attributes)
    if "num_experts" in attributes:
        return experts_cost(attributes)
    if attributes.get("num_kv_heads") is not None:
        return attention_cost(attributes)
    if "state_shapes" in attributes:
        return recurrent_cost(attributes)
    return None


def recurrent_cost(attributes: Mapping[str, Any]) -> Cost:
    """Return the cost of one layer's recurrent state, in the recurrent form, which takes the least FLOPs.

    A token costs two products with the state, at two FLOPs an element each: the update `B x` and the output `C h` (Mamba-2,
    arXiv 2405.21060). The delta rule takes a third, `S k`, which tells what the state holds already (Gated DeltaNet, arXiv
    2412.06464). Before either comes a convolution over the last tokens, whose kernel is one longer than the state that it keeps;
    a layer of linear attention has none. Each request's states are read and written once a step.
    """
    num_tokens, num_reqs = _symbols("num_tokens num_reqs")
    shapes = literal_eval(f"[{attributes['state_shapes']}]")
    kind = str(attributes["mamba_type"]).lower()
    has_convolution = "linear" not in kind
    convolved = 2 * max(shapes[0]) * (min(shapes[0]) + 1) if has_convolution else 0
    products = 3 if "gdn" in kind else 2
    flops = (2 * products * sum(map(prod, shapes[has_convolution:])) + convolved) * num_tokens
    types = attributes["state_dtypes"].split(", ")
    return flops, 2 * sum(prod(shape) * item_bytes(dtype) for shape, dtype in zip(shapes, types, strict=True)) * num_reqs


def attention_cost(attributes: Mapping[str, Any]) -> Cost:
    """Return the cost of one attention operation with its KV cache.

    Two products of `head_size` a pair and head, at two FLOPs each (Vaswani et al., 2017).
    """
    num_tokens, pairs, kv_tokens = _symbols()
    heads, kv_heads = attributes["num_heads"], attributes["num_kv_heads"]
    size, size_v = attributes["head_size"], attributes["head_size_v"]
    flops = 2 * heads * (size + size_v) * pairs
    cache = kv_heads * (size + size_v) * cache_item_bytes(attributes["kv_cache_dtype"], attributes["dtype"])
    activations = heads * (size + size_v) * item_bytes(attributes["dtype"])
    return flops, cache * (kv_tokens + num_tokens) + activations * num_tokens


def latent_attention_cost(attributes: Mapping[str, Any]) -> Cost:
    """Return the cost of one multi-head latent attention operation with its compressed KV cache.

    In the absorbed form that decodes run: queries and outputs go through the up-projections, attention runs in the latent space
    (DeepSeek-V2, arXiv 2405.04434, section 2.1.2).
    """
    num_tokens, pairs, kv_tokens = _symbols()
    heads, rank, rope = attributes["num_heads"], attributes["kv_lora_rank"], attributes["qk_rope_head_dim"]
    up_projection = heads * rank * (attributes["qk_nope_head_dim"] + attributes["v_head_dim"])
    flops = 2 * heads * (2 * rank + rope) * pairs + 2 * up_projection * num_tokens
    cache = (rank + rope) * cache_item_bytes(attributes["kv_cache_dtype"], attributes["dtype"])
    activations = heads * (attributes["qk_nope_head_dim"] + rope + attributes["v_head_dim"]) * num_tokens
    return flops, cache * (kv_tokens + num_tokens) + item_bytes(attributes["dtype"]) * (activations + up_projection)


def experts_cost(attributes: Mapping[str, Any]) -> Cost:
    """Return the cost of one mixture of experts with its shared experts, for a router that spreads tokens evenly.

    Each token goes through `top_k` of `num_experts`, of which this rank holds `num_local_experts`; the step reads each of these
    at most once.
    """
    import sympy

    num_tokens, *_ = _symbols()
    share = sympy.Rational(attributes["num_local_experts"], attributes["num_experts"])
    routed = attributes["top_k"] * share * num_tokens
    expert, shared = attributes["expert_parameters"], attributes["shared_parameters"]
    flops = 2 * (expert * routed + shared * num_tokens)
    experts_read = sympy.Min(attributes["num_local_experts"], routed)
    item = item_bytes(attributes["dtype"])
    # Quantised weights take what they take in memory, scales included.
    expert_bytes, shared_bytes = (
        attributes.get(f"{of}_bytes", item * attributes[f"{of}_parameters"]) for of in ("expert", "shared")
    )
    return flops, expert_bytes * experts_read + shared_bytes + item * 2 * attributes["hidden_size"] * num_tokens


def _symbols(names: str = "num_tokens query_key_pairs kv_tokens") -> tuple[sympy.Symbol, ...]:
    import sympy

    found: tuple[sympy.Symbol, ...] = sympy.symbols(names, integer=True, positive=True)
    return found
