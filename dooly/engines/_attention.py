"""What attention costs, and the request dimensions that it costs by. Holds no torch and no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sympy

_CACHE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


def attention_cost(attributes: Mapping[str, Any]) -> tuple[sympy.Expr, sympy.Expr]:
    """Return FLOPs and least bytes of one attention operation with its KV cache.

    Over the request dimensions `num_tokens` (queries), `query_key_pairs` (keys that each query attends to, summed over queries)
    and `kv_tokens` (distinct cached positions read, summed over requests). Two products of `head_size` a pair and head, at two
    FLOPs each (Vaswani et al., 2017).
    """
    import sympy

    num_tokens, pairs, kv_tokens = sympy.symbols("num_tokens query_key_pairs kv_tokens", integer=True, positive=True)
    heads, kv_heads = attributes["num_heads"], attributes["num_kv_heads"]
    size, size_v = attributes["head_size"], attributes["head_size_v"]
    cache_bytes = _CACHE_BYTES.get(str(attributes["kv_cache_dtype"]), 2)
    flops = 2 * heads * (size + size_v) * pairs
    traffic = kv_heads * (size + size_v) * cache_bytes * (kv_tokens + num_tokens) + 2 * heads * (size + size_v) * num_tokens
    return flops, traffic
