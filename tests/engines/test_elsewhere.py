"""Traces for GPUs that are not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sympy

from dooly.engines import ServingConfig, find_model
from dooly.engines.vllm import _elsewhere
from dooly.errors import DoolyError, EngineError, InvalidInputError, UnsupportedModelError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dooly.tracing import TracedOperation

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


NO_WINDOW = {"use_sliding_window": False, "sliding_window": 256}
LEFT_OUT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]}
ALGORITHM_ALONE = {"quant_algo": "FP8", "ignore": ["lm_head"], "producer": {"name": "modelopt"}}
FORMATS: Mapping[str, tuple[dict[str, Any], float]] = {
    "fp8 per tensor, static": ({"quant_method": "fp8", "activation_scheme": "static"}, 1),
    "modelopt nvfp4": (LEFT_OUT, 0.5 + 1 / 16),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, 0.5 + 3 / 128),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}, 0.5 + 3 / 128),
}
MODELS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {}, {}),
    "blocks": ("llama", {"quantization_config": BLOCKS}, {}),
    "algorithm alone": ("llama", {"quantization_config": ALGORITHM_ALONE}, {}),
    "as it loads": ("llama", {}, {"quantization": "fp8", "kv_cache_dtype": "fp8"}),
    "experts": ("qwen3-moe", {}, {}),
    "experts as they load": ("qwen3-moe", {}, {"quantization": "fp8"}),
    "experts in blocks": ("qwen3-moe", {"quantization_config": BLOCKS}, {}),
    "output layer": ("llama", {"quantization_config": LEFT_OUT | {"ignore": []}}, {}),
    "unknown fields": ("llama", {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", **NO_WINDOW}, {}),
    **{name: ("llama", {"quantization_config": config}, {}) for name, (config, _) in FORMATS.items()},
}
"""Changes to configurations by what is special about them, each with how it is served."""

_TRACE_ALL = """
import json, sys
from pathlib import Path
from dooly.engines import ModelSource, ServingConfig
from dooly.engines._targets import find_target
from dooly.engines.vllm._platform import stand_in

stand_in(find_target("h200"))
from dooly.engines.vllm._model import trace_here

for name, (folder, serving) in json.loads(sys.argv[1]).items():
    traced = trace_here(ModelSource(name, Path(folder)), ServingConfig(**serving), 0)
    (Path(folder) / "traced.json").write_text(json.dumps(traced.to_json()))
"""


@pytest.fixture(scope="module")
def on_h200(tmp_path_factory: pytest.TempPathFactory, configs: Mapping[str, Mapping[str, Any]]) -> Mapping[str, TracedModel]:
    """All of `MODELS` for one GPU, in one process: most of a trace's time there goes into imports."""
    asked = {}
    for name, (config, changes, serving) in MODELS.items():
        folder = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps({**configs[config], **changes}))
        asked[name] = (str(folder), serving)
    run = subprocess.run([sys.executable, "-c", _TRACE_ALL, json.dumps(asked)], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {
        name: TracedModel.from_json(json.loads((Path(folder) / "traced.json").read_text())) for name, (folder, _) in asked.items()
    }


@pytest.fixture(scope="module")
def plain(on_h200: Mapping[str, TracedModel]) -> TracedModel:
    """The model of equal sizes, for a GPU."""
    return on_h200["plain"]


@pytest.fixture(scope="module")
def blocks(on_h200: Mapping[str, TracedModel]) -> TracedModel:
    """The same model in FP8, with a scale a block of 128 x 128."""
    return on_h200["blocks"]


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
    assert [op.count for op in operations if op.name == "all_reduce"] == [1, 4, 4]
    (attention,) = (op for op in operations if op.depends_on_context)
    assert (attention.attributes["num_heads"], attention.attributes["num_kv_heads"]) == (4, 2)


ELSEWHERE: Mapping[str, tuple[str, dict[str, Any], float]] = {
    "fp8 per tensor, dynamic": ("l40s", {"quant_method": "fp8", "activation_scheme": "dynamic"}, 1),
    "modelopt nvfp4": ("b200", LEFT_OUT, 0.5 + 1 / 16),
}
"""Formats for which another GPU has kernels of its own."""


@pytest.mark.parametrize("name", FORMATS)
def test_weights_take_what_the_format_says(on_h200: Mapping[str, TracedModel], name: str) -> None:
    """Bytes of a linear layer's weights and scales, within what scales of groups add; its product counts as of full precision."""
    _check_weights(on_h200[name], FORMATS[name][1])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_gpus_have_kernels_of_their_own(trace_config: TraceConfig, name: str) -> None:
    """The same holds where the engine chooses another kernel, in a process of its own."""
    hardware, config, item_bytes = ELSEWHERE[name]
    _check_weights(trace_config("llama", {"quantization_config": config}, hardware=hardware), item_bytes)


def _check_weights(traced: TracedModel, item_bytes: float) -> None:
    layer = _by_module(traced)["model.layers.0.mlp.down_proj"]
    size = sum(
        {"int32": 4, "uint8": 1, "float8_e4m3fn": 1, "bfloat16": 2, "float32": 4}[dtype] * int(sympy.prod(shape))
        for dtype, shape in _weights(layer)
    )
    assert size / 512**2 == pytest.approx(item_bytes, rel=0.06)
    assert sympy.sympify(layer.request_flops) == 2 * 512 * 512 * sympy.Symbol("num_tokens")


def test_a_packed_output_layer_has_its_width(on_h200: Mapping[str, TracedModel]) -> None:
    """Weights of four bits do not tell the width that they stand for; the logits cost what they cost at full precision."""
    logits = [_by_module(on_h200[name])["logits_processor"] for name in ("output layer", "plain")]
    assert [(op.request_dims, op.request_flops) for op in logits] == [(("num_reqs",), f"{2 * 512 * 512}*num_reqs")] * 2
    assert _weights(logits[0]) != _weights(logits[1])


def test_a_configuration_that_transformers_does_not_know_is_read_by_its_fields(
    on_h200: Mapping[str, TracedModel], plain: TracedModel
) -> None:
    """The engine has code for such a model, and takes its sizes from the fields."""
    attention = "model.layers.0.self_attn.attn"
    assert _by_module(on_h200["unknown fields"])[attention].signature == _by_module(plain)[attention].signature


def test_what_vllm_refuses_there_is_refused_here(trace_config: TraceConfig) -> None:
    """An error of the other process arrives as the same error, in one line."""
    with pytest.raises(UnsupportedModelError, match=r"^made-up: vLLM refuses the configuration: sliding_window: [^\n]*$"):
        trace_config("llama", {"sliding_window": "x"}, hardware="h200")
    with pytest.raises(InvalidInputError, match=r"^--hardware: 'h9000'"):
        trace_config("llama", hardware="h9000")


_STATE = """
import sys
from dooly.engines import ServingConfig, find_model
from dooly.engines.vllm import trace_vllm_model
from dooly.kv_policy import KVPolicy

finders = list(sys.meta_path)
trace_vllm_model(find_model("smollm2-135m"), ServingConfig(kv_policy=KVPolicy("snapkv", 0.2)), hardware="h100")
print([name for name in ("vllm", "torch", "triton") if name in sys.modules], sys.meta_path == finders)
"""


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("os.kill(os.getpid(), 9)", r"was killed by signal 9 \(out of memory\?\); free memory"),
        ("os.kill(os.getpid(), 15)", "was killed by signal 15; free memory"),
        ("sys.exit('no room')", "ended with code 1: no room; see"),
    ],
)
def test_a_process_that_leaves_no_answer(last: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the process that traces was killed, and by which signal, or ended by itself stands in the error."""
    monkeypatch.setattr(_elsewhere, "_THERE", f"import os, sys; {last}")
    with pytest.raises(EngineError, match=f"^llama-3.1-8b: the process that traces it {message}"):
        _elsewhere.trace_elsewhere(find_model("llama-3.1-8b"), ServingConfig(), 0, None)


def test_another_process_has_the_stand_ins() -> None:
    """The process that asks loads neither engine nor torch, and finds modules as it did; a policy is in no trace."""
    run = subprocess.run([sys.executable, "-c", _STATE], check=True, capture_output=True, text=True)
    assert run.stdout == "[] True\n"


def test_a_file_that_names_an_algorithm_alone(trace_config: TraceConfig, on_h200: Mapping[str, TracedModel]) -> None:
    """Such a checkpoint has weights of eight bits, and is not traced at full precision."""
    layer = _by_module(on_h200["algorithm alone"])["model.layers.0.self_attn.o_proj"]
    assert _weights(layer)[0][0] == "float8_e4m3fn"
    with pytest.raises(DoolyError, match=r"^made-up: [^\n]*; trace it as on a GPU, with --hardware h200$"):
        trace_config("llama", {"quantization_config": ALGORITHM_ALONE})


def test_full_precision_can_be_quantised(on_h200: Mapping[str, TracedModel]) -> None:
    """`--quantization` quantises a checkpoint of full precision as it loads, `--kv-cache-dtype` what attention caches."""
    operations = _by_module(on_h200["as it loads"])
    assert _weights(operations["model.layers.0.mlp.down_proj"])[0] == ("float8_e4m3fn", [512, 512])
    attention = operations["model.layers.0.self_attn.attn"]
    assert "1024*num_tokens" not in attention.request_bytes
    assert attention.attributes["kv_cache_dtype"] == "fp8"


def test_experts_cost_what_they_take(on_h200: Mapping[str, TracedModel]) -> None:
    """An expert of eight bits has the parameters of one of full precision, and half its bytes with scales."""
    (plain, eight) = (
        next(op for op in on_h200[name].operations if "num_experts" in op.attributes) for name in ("experts", "experts in blocks")
    )
    parameters = plain.attributes["expert_parameters"]
    assert eight.attributes["expert_parameters"] == parameters == 3 * 512 * 128
    assert eight.attributes["expert_bytes"] == parameters + 4 * 3 * 4
    assert eight.request_flops == plain.request_flops
    loaded = next(op for op in on_h200["experts as they load"].operations if "num_experts" in op.attributes)
    assert loaded.attributes["expert_parameters"] == parameters
    assert loaded.attributes["expert_bytes"] == parameters + 2 * 4
    assert {t.dtype for t in loaded.inputs if t.is_parameter and len(t.shape) == 3} == {"float8_e4m3fn"}
