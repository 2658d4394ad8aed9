"""What selecting takes by the launches, bytes and FLOPs of its kernels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dooly.kv_policy import HeadSizes, KVPolicy
from dooly.predict import listed_hardware
from dooly.predict._selections import estimate_ns, selection_work

LLAMA = HeadSizes(32, 8, 128, 4096)
(H200,) = (device for device in listed_hardware() if device.name == "h200")


def test_products_in_float32_count_at_their_own_rate() -> None:
    """LaProx multiplies values by Gram matrices and by attention in float32, which takes 15 times what bfloat16 does there."""
    policy, num_tokens = KVPolicy("laprox", 0.2), 32_768
    work = selection_work(policy, LLAMA, num_tokens)
    heads, window, size, past = LLAMA.num_heads, 32, LLAMA.head_dim, num_tokens - 32
    norms = 2 * heads * size * size * (past + LLAMA.hidden_size)
    output = 2 * heads * window * size * (num_tokens + LLAMA.hidden_size)
    assert (work.bfloat16_flops, work.float32_flops) == (2 * heads * window * size * num_tokens, norms + output)
    own, alike = (estimate_ns(policy, LLAMA, num_tokens, device) for device in (H200, replace(H200, float32_flops_per_s=None)))
    assert own - alike == pytest.approx(1e9 * (norms + output) * (1 / 67e12 - 1 / 989e12))


def test_a_model_in_float32_moves_and_multiplies_more() -> None:
    """All of SnapKV's products are in the model's type; in float32 they and the keys count so, and nothing is turned into it."""
    policy = KVPolicy("snapkv", 0.2)
    half, single = (selection_work(policy, LLAMA, 8192, dtype) for dtype in ("bfloat16", "float32"))
    assert (half.bfloat16_flops, half.float32_flops) == (single.float32_flops, single.bfloat16_flops)
    assert single.kernels < half.kernels
    assert half == selection_work(policy, LLAMA, 8192, "float16")
    assert estimate_ns(policy, LLAMA, 8192, H200, "float32") > estimate_ns(policy, LLAMA, 8192, H200)


def test_devices_that_ship_have_a_rate_of_float32() -> None:
    """Tensor cores multiply bfloat16, and are four times as fast at least."""
    for device in listed_hardware():
        assert device.float32_flops_per_s is not None
        assert device.float32_flops_per_s < device.flops_per_s / 4
