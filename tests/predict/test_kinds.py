"""Kinds of operations: told by graph and closed forms, whatever their sizes are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.predict._kinds import AttentionShape, Experts, LatentAttention, LinearLayer, families_of, kind_of, products_beside
from dooly.tracing import TracedDim, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedOperation

WEIGHT = TracedTensor("bfloat16", (TracedDim("64", "config", 64), TracedDim("32", "config", 32)), is_parameter=True)


@pytest.mark.parametrize(
    ("dim", "flops"),
    [
        ("num_tokens", "4096*num_tokens"),
        ("32*num_tokens", "131072*num_tokens"),
        ("num_reqs*num_tokens", "4096*num_reqs*num_tokens"),
        ("floor(num_tokens/2)", "4096*floor(num_tokens/2)"),
    ],
)
def test_a_product_is_one_over_any_rows(operation: Callable[..., TracedOperation], dim: str, flops: str) -> None:
    """A product with one whole matrix is a linear layer, be its rows tokens, heads of tokens or half of them."""
    found = operation("a", "proj", inputs=(WEIGHT,), request_dims=(dim,), request_flops=flops)
    assert kind_of(found) == LinearLayer(64, 32, "bfloat16")


@pytest.mark.parametrize(
    ("dim", "flops"), [("num_tokens", "0"), ("floor(num_tokens/5000)", "0"), ("num_tokens", "64*num_tokens")]
)
def test_what_multiplies_less_is_none(operation: Callable[..., TracedOperation], dim: str, flops: str) -> None:
    """An operation that reads a matrix but multiplies no rows with all of it is no linear layer."""
    assert kind_of(operation("a", "lookup", inputs=(WEIGHT,), request_dims=(dim,), request_flops=flops)) is None


def _tensor(dtype: str, *sizes: int | str, parameter: bool = False) -> TracedTensor:
    dims = tuple(TracedDim(str(s), "config", s) if isinstance(s, int) else TracedDim(s, "request", None) for s in sizes)
    return TracedTensor(dtype, dims, is_parameter=parameter)


EIGHT_BITS = _tensor("float8_e4m3fn", "num_tokens", 32)
OUT = (_tensor("bfloat16", "num_tokens", 64),)


@pytest.mark.parametrize(
    ("activations", "weight", "scales", "dtype"),
    [
        (EIGHT_BITS, (32, 64), (1,), "fp8"),
        (EIGHT_BITS, (32, 64), (64, 1), "fp8"),
        (EIGHT_BITS, (64, 32), (2, 4), "fp8_block"),
        (_tensor("bfloat16", "num_tokens", 32), (64, 32), (64, 1), None),
    ],
)
def test_how_a_product_is_quantised_shows_in_its_scales(
    operation: Callable[..., TracedOperation],
    activations: TracedTensor,
    weight: tuple[int, ...],
    scales: tuple[int, ...],
    dtype: str,
) -> None:
    """One scale for all, for a row or for a tile; outputs and inputs either way round; weights alone are no such product."""
    inputs = (activations, _tensor("float8_e4m3fn", *weight, parameter=True), _tensor("float32", *scales, parameter=True))
    found = kind_of(operation("a", "proj", inputs=inputs, outputs=OUT, request_flops="4096*num_tokens"))
    assert found == (dtype and LinearLayer(64, 32, dtype))


ATTENTION = {"kind": "Attention", "num_heads": 8, "num_kv_heads": 2, "head_size": 64, "head_size_v": 64}


@pytest.mark.parametrize(
    ("changes", "shape", "families"),
    [
        ({}, AttentionShape(8, 2, 64, "bfloat16"), ("decodes", "prefills")),
        ({"sliding_window": 128}, AttentionShape(8, 2, 64, "bfloat16", 128), ("decodes-window", "prefills-window")),
        ({"kv_cache_dtype": "fp8_e4m3"}, AttentionShape(8, 2, 64, "fp8"), ("decodes-fp8", "prefills-fp8")),
        ({"attention_chunk_size": 64}, None, None),
    ],
)
def test_attention_goes_by_its_cache_and_its_window(
    operation: Callable[..., TracedOperation],
    changes: dict[str, object],
    shape: AttentionShape | None,
    families: tuple[str, ...] | None,
) -> None:
    """Each element type of the cache, with a window or without, is a family of its own; chunks are none."""
    attributes = ATTENTION | {"kv_cache_dtype": "bfloat16", "sliding_window": None} | changes
    assert kind_of(found := operation("a", "attn", stateful=True, attributes=attributes)) == shape
    assert families is None or families_of(kind_of(found) or LinearLayer(1, 1, "none")) == families


EXPERTS = {
    "kind": "MoE",
    "num_experts": 8,
    "num_local_experts": 8,
    "top_k": 2,
    "hidden_size": 128,
    "intermediate_size": 64,
    "has_bias": False,
    "dtype": "bfloat16",
    "custom_routing": False,
    "expert_parameters": 3 * 128 * 64,
    "shared_parameters": 0,
}


@pytest.mark.parametrize(
    ("types", "kernel", "dtype"),
    [
        (("float8_e4m3fn",), "FlashInferExperts", "fp8"),
        (("float8_e4m3fn",), "TritonExperts", "fp8_block"),
        (("float8_e4m3fn", "float32"), None, "fp8_block"),
        (("uint8", "uint8"), "OAITritonExperts", "mxfp4"),
        (("uint8", "uint8"), "MarlinExperts", "w4a16_mxfp4"),
        (("int32", "bfloat16"), "MarlinExperts", "w4a16"),
        (("int32", "bfloat16"), "OtherExperts", None),
        (("uint8", "float8_e4m3fn"), None, None),
    ],
)
def test_experts_go_by_the_types_of_weights_and_scales(
    operation: Callable[..., TracedOperation], types: tuple[str, ...], kernel: str | None, dtype: str | None
) -> None:
    """Four-bit weights with scales of a type that was not measured have no family; Marlin alone has padded widths."""
    inputs = tuple(_tensor(name, 8, 16, 16, parameter=True) for name in types)
    attributes = EXPERTS | {"kernel": kernel, "expert_bytes": 1, "unpadded_hidden_size": 120, "unpadded_intermediate_size": 60}
    found = kind_of(operation("a", "experts", stateful=True, inputs=inputs, attributes=attributes))
    sizes = (128, 64) if kernel == "MarlinExperts" else (120, 60)
    assert found == (dtype and Experts(*sizes, 2, 8, 8, dtype))


def test_shared_experts_are_products_beside(operation: Callable[..., TracedOperation]) -> None:
    """A router, and gate, up and down in FP8 by blocks, whose scales are none; what they do not add up to is not known."""
    inputs = (
        _tensor("float8_e4m3fn", 8, 128, 128, parameter=True),
        _tensor("float32", 8, 1, 1, parameter=True),
        _tensor("bfloat16", 8, 128, parameter=True),
        _tensor("bfloat16", 8, 2, parameter=True),
        _tensor("float8_e4m3fn", 256, 128, parameter=True),
        _tensor("float32", 2, 3, parameter=True),
        _tensor("float8_e4m3fn", 128, 384, parameter=True),
        _tensor("float32", 3, 3, parameter=True),
    )
    attributes = EXPERTS | {"shared_parameters": 8 * 128 + 256 * 128 + 128 * 384, "expert_bytes": 1}
    found = operation("a", "experts", stateful=True, inputs=inputs, attributes=attributes)
    assert products_beside(found) == (
        LinearLayer(8, 128, "bfloat16"),
        LinearLayer(256, 128, "fp8_block"),
        LinearLayer(128, 384, "fp8_block"),
    )
    assert isinstance(kind_of(found), Experts)
    attributes["shared_parameters"] += 1
    assert kind_of(operation("a", "experts", stateful=True, inputs=inputs, attributes=attributes)) is None


LATENT = ATTENTION | {
    "kind": "MLAAttention",
    "kv_cache_dtype": "auto",
    "sliding_window": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}


def test_latent_attention_has_a_family_for_its_widths(operation: Callable[..., TracedOperation]) -> None:
    """A cache of no type of its own has that of activations; one that attends to some tokens alone is another operation."""
    found = operation("a", "attn", stateful=True, outputs=(_tensor("bfloat16", 4, 4),), attributes=LATENT)
    assert kind_of(found) == (shape := LatentAttention(LATENT["num_heads"], 512, 64, 128, 128, "bfloat16"))
    assert families_of(shape) == ("latent-decodes-512-64-128-128", "latent-prefills-512-64-128-128")
    in_fp8 = operation(
        "a", "attn", stateful=True, outputs=(_tensor("bfloat16", 4, 4),), attributes=LATENT | {"kv_cache_dtype": "fp8"}
    )
    assert families_of(kind_of(in_fp8) or shape)[0] == "latent-decodes-512-64-128-128-fp8"
    assert (
        kind_of(operation("a", "attn", stateful=True, attributes=LATENT | {"is_sparse": True, "kv_cache_dtype": "fp8"})) is None
    )
