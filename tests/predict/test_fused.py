"""Quantisation that a compiling engine makes part of the operation before."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

import dooly
from dooly.catalog import operation_table
from dooly.predict._fused import FusedLinear, fused_linear_layers

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._sources import Source

SERVING = dooly.ServingConfig(quantization="fp8", max_model_len=2048)


def test_products_behind_norms_and_activations_are_fused_and_those_behind_attention_are_not() -> None:
    """Of a layer's four products three follow what a compiler may join with their quantisation."""
    traced = operation_table(dooly.find_model("llama-3.1-8b"), SERVING, "h200")
    fused = fused_linear_layers(traced)
    names = {op.module.rpartition(".")[2] for op in traced.operations if op.signature in fused}
    assert names == {"qkv_proj", "gate_up_proj", "down_proj"}


def test_a_product_that_runs_behind_something_else_too_is_not_fused() -> None:
    """Where one row stands for several modules, the list tells of the first alone what it follows."""
    traced = operation_table(dooly.find_model("llama-3.1-8b"), SERVING, "h200")
    (qkv,) = (op for op in traced.operations if op.module.endswith("qkv_proj"))
    more = replace(qkv, calls=(), placements=(*qkv.placements, ("model.layers.0.self_attn.o_proj", 1)))
    merged = replace(traced, operations=tuple(more if op is qkv else op for op in traced.operations))
    assert qkv.signature in fused_linear_layers(traced)
    assert qkv.signature not in fused_linear_layers(merged)


def test_without_quantised_activations_nothing_is_fused() -> None:
    """Products in bfloat16 quantise nothing."""
    model = dooly.find_model("llama-3.1-8b")
    assert not fused_linear_layers(operation_table(model, dooly.ServingConfig(), "h200"))


def test_a_fused_product_takes_less_by_a_kernel_over_its_activations() -> None:
    """Llama's qkv reads 4,096 activations a token: of 2,048 tokens 25.2 MB move in 5.7 us, behind a launch of 2.4 us."""
    latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200", serving=SERVING)
    (fitted,) = (fitted for fitted in latency.operations if fitted.operation.module.endswith("qkv_proj"))
    assert isinstance(fitted.latency, FusedLinear)
    batches = dooly.predict.BatchArrays.checked([[2048], [1]], [[0], [0]])
    whole = fitted.latency.whole.latency_ns(fitted.work, batches)
    assert (whole - fitted.latency.latency_ns(fitted.work, batches)).tolist() == pytest.approx([2367 + 5742, 2367 + 3], abs=2)


class Little:
    """A latency of 3 us from anywhere."""

    relative_error = 0.01

    def __init__(self, source: Source) -> None:
        self.source: Source = source

    def latency_ns(self, _work: object, _batches: object) -> npt.NDArray[np.float64]:
        """Take 3 us."""
        return np.array([3000.0])


@pytest.mark.parametrize(("whole", "fused"), [("measured", "family"), ("family", "family"), ("estimated", "estimated")])
def test_what_is_left_of_a_measured_product_was_not_measured(whole: Source, fused: Source) -> None:
    """A part of it is deduced, so no step is told to be measured by it; an estimate is no better for it."""
    device = next(known for known in dooly.predict.listed_hardware() if known.name == "h200")
    assert FusedLinear(Little(whole), device, 4096).source == fused


def test_a_product_takes_no_less_than_a_launch() -> None:
    """However little the tables say of it."""
    latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200", serving=SERVING)
    (fitted,) = (fitted for fitted in latency.operations if fitted.operation.module.endswith("qkv_proj"))
    assert latency.hardware is not None
    fused = FusedLinear(Little("measured"), latency.hardware, 4096)
    assert fused.latency_ns(fitted.work, dooly.predict.BatchArrays.checked([[1]], [[0]])).tolist() == [latency.hardware.launch_ns]
