"""Quantisation that a compiling engine makes part of the operation before."""

from __future__ import annotations

import pytest

import dooly
from dooly.catalog import operation_table
from dooly.predict._fused import FusedLinear, fused_linear_layers

SERVING = dooly.ServingConfig(quantization="fp8", max_model_len=2048)


def test_products_behind_norms_and_activations_are_fused_and_those_behind_attention_are_not() -> None:
    """Of a layer's four products three follow what a compiler may join with their quantisation."""
    traced = operation_table(dooly.find_model("llama-3.1-8b"), SERVING, "h200")
    fused = fused_linear_layers(traced)
    names = {op.module.rpartition(".")[2] for op in traced.operations if op.signature in fused}
    assert names == {"qkv_proj", "gate_up_proj", "down_proj"}


def test_without_quantised_activations_nothing_is_fused() -> None:
    """Products in bfloat16 quantise nothing."""
    model = dooly.find_model("llama-3.1-8b")
    assert not fused_linear_layers(operation_table(model, dooly.ServingConfig(), "h200"))


@pytest.mark.parametrize("num_tokens", [1, 64, 2048])
def test_a_fused_product_takes_less_by_a_kernel_over_its_activations(num_tokens: int) -> None:
    """What is saved is a launch and three bytes an activation, and a product never takes less than a launch."""
    latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200", serving=SERVING)
    batches = dooly.predict.BatchArrays.checked([[num_tokens]], [[0]])
    hardware = latency.hardware
    assert hardware is not None
    fused = [fitted for fitted in latency.operations if isinstance(fitted.latency, FusedLinear)]
    assert len(fused) == 3
    for fitted in fused:
        assert isinstance(fitted.latency, FusedLinear)
        whole = float(fitted.latency.whole.latency_ns(fitted.work, batches)[0])
        saved = hardware.launch_ns + 1e9 * 3 * fitted.latency.width * num_tokens / hardware.moved_bytes_per_s
        found = float(fitted.latency.latency_ns(fitted.work, batches)[0])
        assert found == pytest.approx(max(whole - saved, hardware.launch_ns))
        assert fitted.latency.source == fitted.latency.whole.source
