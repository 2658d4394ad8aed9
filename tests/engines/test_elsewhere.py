"""Traces for GPUs that are not here."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sympy

from dooly.errors import DoolyError, InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dooly.tracing import TracedModel, TracedOperation

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


@pytest.fixture(scope="module")
def plain(trace_config: TraceConfig) -> TracedModel:
    """The model of equal sizes, for a GPU."""
    return trace_config("llama", hardware="h200")


@pytest.fixture(scope="module")
def blocks(trace_config: TraceConfig) -> TracedModel:
    """The same model in FP8, with a scale a block of 128 x 128."""
    return trace_config("llama", {"quantization_config": BLOCKS}, hardware="h200")


def _by_module(traced: TracedModel) -> dict[str, TracedOperation]:
    return {op.module: op for op in traced.operations}


def _weights(operation: TracedOperation) -> list[tuple[str, list[int | None]]]:
    return [(t.dtype, [d.value for d in t.shape]) for t in operation.inputs if t.is_parameter]


def test_a_full_precision_model_is_the_same_everywhere(trace_config: TraceConfig, plain: TracedModel) -> None:
    """Each operation has the signature that it has for the device at hand; the environment says what it was traced for."""
    here = {op.module: (op.signature, op.count) for op in trace_config("llama").operations}
    assert {op.module: (op.signature, op.count) for op in plain.operations} == here
    assert (plain.environment["device"], plain.environment["platform"]) == ("NVIDIA H200", "cuda")


def test_blocks_of_eight_bits(blocks: TracedModel) -> None:
    """Weights and scales have the checkpoint's types and sizes; activations are quantised by an operation of their own."""
    operations = _by_module(blocks)
    layer = "model.layers.0.self_attn.o_proj"
    assert _weights(operations[layer]) == [("float8_e4m3fn", [512, 512]), ("float32", [4, 4])]
    (quantised,) = (op for module, op in operations.items() if module.startswith(f"{layer}."))
    assert [t.dtype for t in (*quantised.inputs, *quantised.outputs)] == ["bfloat16", "float8_e4m3fn", "float32"]
    assert sympy.sympify(operations[layer].request_flops) == 2 * 512 * 512 * sympy.Symbol("num_tokens")


def test_models_share_what_quantisation_leaves_alone(plain: TracedModel, blocks: TracedModel) -> None:
    """Norms, rotary embeddings, attention, activation, embedding and logits are the same operations in both."""
    full, eight = _by_module(plain), _by_module(blocks)
    shared = {module for module in full if full[module].signature == eight[module].signature}
    linear = {
        f"model.layers.0.{name}" for name in ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    }
    assert set(full) - shared == linear


def test_several_ranks_need_no_several_gpus(trace_config: TraceConfig) -> None:
    """A rank's part of a layout has half the heads of each layer, and the collectives that join them."""
    operations = trace_config("llama", hardware="h200", tensor_parallel_size=2).operations
    assert [op.count for op in operations if op.name == "all_reduce"] == [1, 8]
    (attention,) = (op for op in operations if op.depends_on_context)
    assert (attention.attributes["num_heads"], attention.attributes["num_kv_heads"]) == (4, 2)


FORMATS: Mapping[str, tuple[str, dict[str, Any], float]] = {
    "fp8 per tensor, static": ("h200", {"quant_method": "fp8", "activation_scheme": "static"}, 1),
    "fp8 per tensor, dynamic": ("l40s", {"quant_method": "fp8", "activation_scheme": "dynamic"}, 1),
    "modelopt nvfp4, no such units": (
        "h200",
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]},
        0.5 + 1 / 16,
    ),
    "modelopt nvfp4": (
        "b200",
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]},
        0.5 + 1 / 16,
    ),
    "awq": ("h200", {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, 0.5 + 3 / 128),
    "gptq": ("h200", {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}, 0.5 + 3 / 128),
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_take_what_the_format_says(trace_config: TraceConfig, name: str) -> None:
    """Bytes of a linear layer's weights and scales, within what scales of groups add; its product counts as of full precision."""
    hardware, config, item_bytes = FORMATS[name]
    operations = _by_module(trace_config("llama", {"quantization_config": config}, hardware=hardware))
    layer = operations["model.layers.0.mlp.down_proj"]
    size = sum(
        {"int32": 4, "uint8": 1, "float8_e4m3fn": 1, "bfloat16": 2, "float32": 4}[dtype] * int(sympy.prod(shape))
        for dtype, shape in _weights(layer)
    )
    assert size / 512**2 == pytest.approx(item_bytes, rel=0.06)
    assert sympy.sympify(layer.request_flops) == 2 * 512 * 512 * sympy.Symbol("num_tokens")


def test_what_vllm_refuses_there_is_refused_here(trace_config: TraceConfig) -> None:
    """An error of the other process arrives as the same error, in one line."""
    with pytest.raises(UnsupportedModelError, match=r"^made-up: vLLM [^\n]*NoSuchForCausalLM[^\n]*$"):
        trace_config("llama", {"architectures": ["NoSuchForCausalLM"]}, hardware="h200")
    with pytest.raises(InvalidInputError, match=r"^--hardware: 'h9000'"):
        trace_config("llama", hardware="h9000")


_STATE = """
import sys
from dooly.engines import ServingConfig, find_model
from dooly.engines.vllm import trace_vllm_model

finders = list(sys.meta_path)
trace_vllm_model(find_model("smollm2-135m"), ServingConfig(), hardware="h100")
print([name for name in ("vllm", "torch", "triton") if name in sys.modules], sys.meta_path == finders)
"""


def test_another_process_has_the_stand_ins() -> None:
    """The process that asks loads neither engine nor torch, and finds modules as it did."""
    run = subprocess.run([sys.executable, "-c", _STATE], check=True, capture_output=True, text=True)
    assert run.stdout == "[] True\n"


ALGORITHM_ALONE = {"quantization_config": {"quant_algo": "FP8", "ignore": ["lm_head"], "producer": {"name": "modelopt"}}}


def test_a_file_that_names_an_algorithm_alone(trace_config: TraceConfig) -> None:
    """Such a checkpoint has weights of eight bits, and is not traced at full precision."""
    layer = _by_module(trace_config("llama", ALGORITHM_ALONE, hardware="h200"))["model.layers.0.self_attn.o_proj"]
    assert _weights(layer)[0][0] == "float8_e4m3fn"
    with pytest.raises(DoolyError, match=r"^made-up: [^\n]*; trace it as on a GPU, with --hardware h200$"):
        trace_config("llama", ALGORITHM_ALONE)


def test_full_precision_can_be_quantised(trace_config: TraceConfig) -> None:
    """`--quantization` quantises a checkpoint of full precision as it loads, `--kv-cache-dtype` what attention caches."""
    operations = _by_module(trace_config("llama", hardware="h200", quantization="fp8", kv_cache_dtype="fp8"))
    assert _weights(operations["model.layers.0.mlp.down_proj"])[0] == ("float8_e4m3fn", [512, 512])
    attention = operations["model.layers.0.self_attn.attn"]
    assert "1024*num_tokens" not in attention.request_bytes
    assert attention.attributes["kv_cache_dtype"] == "fp8"


def test_experts_cost_what_they_take(trace_config: TraceConfig) -> None:
    """An expert of eight bits has the parameters of one of full precision, and half its bytes with scales."""
    (plain, eight) = (
        next(op for op in trace_config("qwen3-moe", changes, hardware="h200").operations if "num_experts" in op.attributes)
        for changes in ({}, {"quantization_config": BLOCKS})
    )
    parameters = plain.attributes["expert_parameters"]
    assert eight.attributes["expert_parameters"] == parameters == 3 * 512 * 128
    assert eight.attributes["expert_bytes"] == parameters + 4 * 3 * 4
    assert eight.request_flops == plain.request_flops
