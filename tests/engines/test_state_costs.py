from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.engines._state_costs import attention_cost, experts_cost, latent_attention_cost, recurrent_cost, state_cost

if TYPE_CHECKING:
    import sympy

ATTRIBUTES = {"num_heads": 4, "num_kv_heads": 2, "head_size": 8, "head_size_v": 8, "kv_cache_dtype": "auto", "dtype": "bfloat16"}
ONE_PREFILL = {"num_tokens": 3, "query_key_pairs": 6, "kv_tokens": 3}
"""A prompt of three tokens: 1 + 2 + 3 pairs."""


def value(form: sympy.Expr) -> int:
    """Return what a form is for `ONE_PREFILL`."""
    return int(form.subs({symbol: ONE_PREFILL[symbol.name] for symbol in form.free_symbols}))


def coefficient(form: sympy.Expr, name: str) -> sympy.Expr:
    """Return what a form grows by for one more of the named dimension."""
    (symbol,) = (s for s in form.free_symbols if s.name == name)
    return form.expand().coeff(symbol)


def test_a_small_prefill_by_hand() -> None:
    """Two products of 8 a pair and head; three rows of queries, outputs, and keys and values, written and read."""
    flops, traffic = attention_cost(ATTRIBUTES)
    assert value(flops) == 4 * 6 * (2 * 8 + 2 * 8)
    queries_and_outputs = 2 * (3 * 4 * 8) * 2
    keys_and_values = 2 * (3 * 2 * 8) * 2
    assert value(traffic) == queries_and_outputs + 2 * keys_and_values


@pytest.mark.parametrize("kind", ["fp8", "fp8_e4m3", "fp8_e5m2"])
def test_an_eight_bit_cache_halves_the_traffic_of_keys_and_values(kind: str) -> None:
    """The cached position's bytes follow the cache's type; nothing else changes."""
    flops, traffic = attention_cost(ATTRIBUTES)
    flops_8, traffic_8 = attention_cost(ATTRIBUTES | {"kv_cache_dtype": kind})
    assert flops_8 == flops
    assert coefficient(traffic, "kv_tokens") == 2 * coefficient(traffic_8, "kv_tokens") > 0


def test_activations_count_by_their_own_type() -> None:
    """Queries and outputs of float32 take twice the bytes, whatever the cache's type."""
    _, traffic = attention_cost(ATTRIBUTES | {"kv_cache_dtype": "fp8"})
    _, wide = attention_cost(ATTRIBUTES | {"kv_cache_dtype": "fp8", "dtype": "float32"})
    assert coefficient(wide, "kv_tokens") == coefficient(traffic, "kv_tokens")
    assert value(wide) - value(traffic) == 2 * (3 * 4 * 8) * 2


def test_heads_of_unequal_width_count_both() -> None:
    """Keys and values may differ in width, as in latent attention."""
    flops, _ = attention_cost(ATTRIBUTES | {"head_size": 12, "head_size_v": 4})
    assert flops == attention_cost(ATTRIBUTES)[0]
    wider, _ = attention_cost(ATTRIBUTES | {"head_size_v": 16})
    assert value(wider) == 4 * 6 * (2 * 8 + 2 * 16)


LATENT = {
    "num_heads": 4,
    "num_kv_heads": 1,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 2,
    "v_head_dim": 6,
    "kv_cache_dtype": "bfloat16",
    "dtype": "bfloat16",
}
EXPERTS = {
    "num_experts": 8,
    "num_local_experts": 8,
    "top_k": 2,
    "hidden_size": 4,
    "expert_parameters": 30,
    "shared_parameters": 7,
    "dtype": "bfloat16",
}


def test_latent_attention_by_hand() -> None:
    """Queries and outputs go up once a token; a pair costs a product in the latent space and its rotary part, and one back."""
    flops, traffic = latent_attention_cost(LATENT)
    assert value(flops) == 3 * 2 * 4 * 16 * (8 + 6) + 6 * 2 * 4 * (16 + 2 + 16)
    cached, activations, weights = (16 + 2) * (3 + 3), 3 * 4 * (8 + 2 + 6), 4 * 16 * (8 + 6)
    assert value(traffic) == 2 * (cached + activations + weights)


def test_experts_by_hand() -> None:
    """Three tokens go through two experts each and through the shared ones; six experts are read, and no more than there are."""
    flops, traffic = experts_cost(EXPERTS)
    assert value(flops) == 2 * 3 * (2 * 30 + 7)
    assert value(traffic) == 2 * (6 * 30 + 7 + 2 * 4 * 3)
    (num_tokens,) = traffic.free_symbols
    assert traffic.subs(num_tokens, 100) == 2 * (8 * 30 + 7 + 2 * 4 * 100)


def test_a_rank_pays_for_its_share_of_experts() -> None:
    """Half of the experts take half of the routed tokens."""
    whole, _ = experts_cost(EXPERTS | {"shared_parameters": 0})
    half, _ = experts_cost(EXPERTS | {"shared_parameters": 0, "num_local_experts": 4})
    assert whole == 2 * half


STATE = {"mamba_type": "mamba2_attn", "state_shapes": "(3, 24), (4, 8, 16)", "state_dtypes": "bfloat16, float32"}
"""A convolution of four taps over 24 channels, and four heads with states of 8 x 16."""


@pytest.mark.parametrize(
    ("changes", "flops"),
    [
        ({}, 2 * 2 * 4 * 8 * 16 + 2 * 4 * 24),
        ({"mamba_type": "gdn_attn"}, 3 * 2 * 4 * 8 * 16 + 2 * 4 * 24),
        ({"mamba_type": "linear_attn", "state_shapes": "(4, 8, 16)", "state_dtypes": "float32"}, 2 * 2 * 4 * 8 * 16),
        ({"mamba_type": "short_conv_attn", "state_shapes": "(24, 3)", "state_dtypes": "bfloat16"}, 2 * 4 * 24),
    ],
    ids=["scan", "delta rule", "linear attention", "convolution"],
)
def test_recurrent_states_by_hand(changes: dict[str, str], flops: int) -> None:
    """Each token multiplies by the state; each request's state is read and written once, whatever tokens it brings."""
    found, traffic = recurrent_cost(STATE | changes)
    assert value(found) == 3 * flops
    assert {symbol.name for symbol in traffic.free_symbols} == {"num_reqs"}


def test_states_take_their_bytes_twice() -> None:
    """One reading and one writing, each state in its own element type."""
    assert coefficient(recurrent_cost(STATE)[1], "num_reqs") == 2 * (2 * 3 * 24 + 4 * 4 * 8 * 16)


def test_the_attributes_tell_the_kind() -> None:
    """Each kind finds its closed form; one without a form has none."""
    assert state_cost(ATTRIBUTES) == attention_cost(ATTRIBUTES)
    assert state_cost(LATENT) == latent_attention_cost(LATENT)
    assert state_cost(EXPERTS) == experts_cost(EXPERTS)
    assert state_cost(STATE) == recurrent_cost(STATE)
    assert state_cost({"kind": "Sampler"}) is None
