"""Element types by name, as torch has them for tensors and engines for their caches, and how many bytes an element takes.

Holds no torch, so that predictors can count bytes too.
"""

from __future__ import annotations

from dooly.errors import UnsupportedModelError

_NAMES = {
    1: (
        *("bool", "int8", "uint8", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
        "float4_e2m1fn_x2",
        *("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc"),
    ),
    2: ("bfloat16", "float16", "int16", "uint16"),
    4: ("float32", "int32", "uint32", "complex32"),
    8: ("float64", "int64", "uint64", "complex64"),
    16: ("complex128",),
}
_ITEM_BYTES = {name: size for size, names in _NAMES.items() for name in names}


def item_bytes(dtype: str) -> int:
    """Return the size of one element, in bytes.

    Raises:
        UnsupportedModelError: The size is not known, as where elements share scales that lie beside them.
    """
    if dtype not in _ITEM_BYTES:
        raise UnsupportedModelError(
            f"element type {dtype}: how many bytes it takes is not known; choose another, as bfloat16 or fp8"
        )
    return _ITEM_BYTES[dtype]


def cache_item_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Return the size of one element of a KV cache, in bytes.

    Args:
        kv_cache_dtype: The cache's element type; `auto` is the model's own.
        dtype: The model's element type.

    Raises:
        UnsupportedModelError: The size is not known.
    """
    return item_bytes(dtype if kv_cache_dtype == "auto" else kv_cache_dtype)
