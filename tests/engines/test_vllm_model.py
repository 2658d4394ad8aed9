from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import sympy
import torch

from dooly.engines import ServingConfig, find_model
from dooly.errors import EngineError, InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedModel, TracedOperation

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def smollm() -> TracedModel:
    """Return the table of a listed model of 30 layers."""
    from dooly.engines.vllm import trace_vllm_model

    return trace_vllm_model(find_model("smollm2-135m"), ServingConfig())


@pytest.fixture(scope="module")
def equal_sizes(trace_config: TraceConfig) -> dict[str, TracedOperation]:
    """Return the operations of the model of equal sizes, by name."""
    return {op.name: op for op in trace_config("llama").operations}


def test_layers_are_counted(smollm: TracedModel) -> None:
    """Each layer operation counts 30 times, over the places that run it; what stands outside the layers counts once."""
    counts = {op.module: op.count for op in smollm.operations}
    layer = "model.layers.0."
    inside = ["self_attn.qkv_proj", "self_attn.rotary_emb", "self_attn.attn", "self_attn.o_proj", "post_attention_layernorm"]
    inside += ["mlp.gate_up_proj", "mlp.act_fn", "mlp.down_proj"]
    outside = ["model.embed_tokens", "model.norm", "logits_processor", "sampler"]
    # The first layer's norm has no residual to add, so it is another operation than that of the 29 others.
    norms = {f"{layer}input_layernorm": 1, "model.layers.1.input_layernorm": 29}
    assert counts == {layer + name: 30 for name in inside} | dict.fromkeys(outside, 1) | norms
    assert all(sum(count for _, count in op.placements) == op.count for op in smollm.operations)


def test_every_dimension_has_an_origin(smollm: TracedModel) -> None:
    """Each dimension is config with a value, or request or mixed without."""
    dims = [d for op in smollm.operations for tensor in (*op.inputs, *op.outputs) for d in tensor.shape]
    assert {d.origin for d in dims} == {"config", "request"}
    assert all((d.value is not None) == (d.origin == "config") for d in dims)
    assert {d.expr for d in dims if d.origin == "request"} == {"num_tokens", "num_reqs"}


def test_a_tied_weight_is_one_parameter(smollm: TracedModel) -> None:
    """The vocabulary projection reads the embedding's weight, under its name."""
    names = {op.name: [t.parameter for t in op.inputs if t.parameter] for op in smollm.operations}
    assert names["logits_processor"] == names["embed_tokens"] == ["model.embed_tokens.weight"]


def test_stages_are_told_apart(smollm: TracedModel) -> None:
    """Logits and sampling follow the decoder and depend on requests, not on tokens; attention and sampling have state."""
    stages = {op.name: (op.stage, op.request_dims) for op in smollm.operations}
    assert stages["logits_processor"] == ("logits", ("num_reqs",))
    assert stages["sampler"] == ("sample", ("num_reqs",))
    assert {stage for stage, _ in stages.values()} == {"decoder", "logits", "sample"}
    assert {op.name for op in smollm.operations if op.stateful} == {"attn", "sampler"}


def test_flops_are_two_a_weight(smollm: TracedModel) -> None:
    """One token through the linear layers and the vocabulary projection costs two operations a weight, within 2 %."""
    config = find_model("smollm2-135m").config
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv_size = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    weights = layers * (2 * hidden * hidden + 2 * hidden * kv_size + 3 * hidden * inner) + config["vocab_size"] * hidden
    one = {"num_tokens": 1, "num_reqs": 1}
    stateless = [op for op in smollm.operations if not op.stateful]
    flops = sum(op.count * int(sympy.sympify(op.request_flops).subs(one)) for op in stateless)
    assert flops == pytest.approx(2 * weights, rel=0.02)


def test_attention_costs_by_what_it_attends_to(smollm: TracedModel) -> None:
    """Attention's cost is over tokens, cached positions and query-key pairs, with the head counts as attributes."""
    (attention,) = (op for op in smollm.operations if op.name == "attn")
    assert attention.request_dims == ("num_tokens", "kv_tokens", "query_key_pairs")
    assert (attention.attributes["num_heads"], attention.attributes["num_kv_heads"], attention.attributes["head_size"]) == (
        9,
        3,
        64,
    )
    assert sympy.sympify(attention.request_flops) == 4 * 9 * 64 * sympy.Symbol("query_key_pairs")


def test_equal_sizes_keep_their_origins(equal_sizes: dict[str, TracedOperation]) -> None:
    """Hidden, query, intermediate and vocabulary sizes, all 512, carry four origins."""
    hidden, query = equal_sizes["o_proj"].inputs[0].shape
    intermediate = equal_sizes["down_proj"].inputs[0].shape[1]
    vocabulary = equal_sizes["logits_processor"].inputs[0].shape[0]
    assert [d.value for d in (hidden, query, intermediate, vocabulary)] == [512] * 4
    names = ["hidden_size", "head_dim*num_attention_heads", "intermediate_size", "vocab_size"]
    assert [d.expr for d in (hidden, query, intermediate, vocabulary)] == names


def test_a_merged_width_is_an_expression(equal_sizes: dict[str, TracedOperation]) -> None:
    """The merged projection's width is written over the configuration's heads, its input is the hidden size."""
    width, hidden = equal_sizes["qkv_proj"].inputs[0].shape
    assert (width.expr, width.value) == ("head_dim*num_attention_heads + 2*head_dim*num_key_value_heads", 1024)
    assert hidden.expr == equal_sizes["o_proj"].outputs[0].shape[1].expr


def test_a_model_can_be_traced_again(trace_config: TraceConfig, equal_sizes: dict[str, TracedOperation]) -> None:
    """A second trace of the same model in one process gives the same operations."""
    assert {op.name: op for op in trace_config("llama").operations} == equal_sizes


def test_a_short_model_keeps_to_its_positions(trace_config: TraceConfig) -> None:
    """A model with fewer positions than the longest sequence asked for is traced at its own length."""
    assert {op.name: op.count for op in trace_config("llama", {"max_position_embeddings": 512}).operations}["qkv_proj"] == 4


def test_models_share_operations(trace_config: TraceConfig, equal_sizes: dict[str, TracedOperation]) -> None:
    """A model with another feed-forward shares all operations but those of the feed-forward."""
    wider = {op.name: op for op in trace_config("llama", {"intermediate_size": 768, "num_hidden_layers": 6}).operations}
    differing = {name for name, op in wider.items() if op.signature != equal_sizes[name].signature}
    assert differing == {"gate_up_proj", "act_fn", "down_proj"}
    assert wider["qkv_proj"].count == 6


def test_values_that_building_reads_are_there(trace_config: TraceConfig) -> None:
    """Attention slopes are computed while vLLM builds the model, and identify the attention; no weight has values."""
    bloom = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_head": 8, "n_layer": 4, "layer_norm_epsilon": 1e-5}
    attention = {op.name: op for op in trace_config("llama", bloom).operations}["attn"]
    assert attention.count == 4
    assert attention.attributes["alibi_slopes"]


def test_tables_of_two_lengths_are_joined(trace_config: TraceConfig) -> None:
    """Rotary tables for short and for long contexts, one of few elements, become one."""
    factors = {"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "rope_theta": 10000.0}
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
    phi = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "rope_parameters": factors | lengths, "pad_token_id": 0}
    assert trace_config("llama", phi | lengths, max_model_len=4096).operations


def test_an_engine_of_the_process_changes_no_trace(trace_config: TraceConfig, llama: dict[str, object], tmp_path: Path) -> None:
    """What vLLM sets for all models of a process when an engine starts does not reach the operations of the next trace."""
    from dooly.engines.vllm import VllmEngine

    before = trace_config("llama").operations
    serving = ServingConfig(max_model_len=64, max_num_batched_tokens=16, max_num_seqs=1, kv_cache_memory_bytes=64 << 20)
    (tmp_path / "config.json").write_text(json.dumps(llama))
    VllmEngine(find_model(str(tmp_path)), serving, 1).close()
    assert trace_config("llama").operations == before


_STATE = """
import json, os, sys, warnings
import torch
import torch._dynamo, torch._inductor.config
import huggingface_hub.constants, transformers
from dooly.engines import ServingConfig, find_model
from dooly.engines.vllm import trace_vllm_model

def state():
    configs = (torch._dynamo.config, torch._inductor.config, torch.fx.experimental._config)
    return {
        "settings": [repr(sorted(config.get_config_copy().items())) for config in configs],
        "defaults": [str(torch.get_default_dtype()), str(torch.get_default_device()), torch.is_grad_enabled()],
        "random state": torch.get_rng_state().tolist(),
        "environment": dict(os.environ),
        "network": huggingface_hub.constants.HF_HUB_OFFLINE,
        "verbosity": transformers.logging.get_verbosity(),
        "threads": [torch.get_num_threads(), len(os.sched_getaffinity(0))],
        "warnings": [repr(f) for f in warnings.filters],
    }

before = state()
trace_vllm_model(find_model("smollm2-135m"), ServingConfig())
print(json.dumps([name for name, value in state().items() if value != before[name]]))
"""


def test_a_trace_leaves_the_process_as_it_was() -> None:
    """Settings of PyTorch, defaults, random state, environment variables and warning filters are the same afterwards."""
    run = subprocess.run([sys.executable, "-c", _STATE], check=True, capture_output=True, text=True)
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_a_process_group_is_not_taken_over(trace_config: TraceConfig) -> None:
    """A process that belongs to a process group of the user is refused, and the group stands afterwards."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(EngineError, match=r"^engine vllm: this process belongs to a torch\.distributed group"):
            trace_config("llama")
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_an_unknown_architecture_is_refused(trace_config: TraceConfig) -> None:
    """An architecture that vLLM does not know is an error of one line with its name."""
    with pytest.raises(UnsupportedModelError, match=r"^made-up: vLLM [^\n]*NoSuchForCausalLM[^\n]*$"):
        trace_config("llama", {"architectures": ["NoSuchForCausalLM"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": "big"},
            r"vLLM refuses the configuration: Field 'hidden_size' expected int, got str \(value: 'big'\); check ",
        ),
        (
            {"num_attention_heads": 0},
            "vLLM refuses the configuration: ZeroDivisionError: [^\n]*; check its config.json and the set",
        ),
        ({"sliding_window": "x"}, "vLLM refuses the configuration: sliding_window: Input should be a valid integer"),
        ({"num_hidden_layers": -1}, r"config\.json: num_hidden_layers: -1 is not at least 1; correct it$"),
    ],
)
def test_a_broken_configuration_is_refused(trace_config: TraceConfig, changes: dict[str, Any], message: str) -> None:
    """What vLLM or Transformers finds wrong in a config.json is one line with their reason."""
    with pytest.raises(InvalidInputError, match=message) as refused:
        trace_config("llama", changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("network", "path", "module", "stage"),
    [
        ("", "network.proj", "network.proj", "decoder"),
        ("", "networks.0.proj", "networks.0.proj", "decoder"),
        ("", "sampler", "sampler", "decoder"),
        ("", "", "", "decoder"),
        ("network", "network.lm_head", "lm_head", "logits"),
        ("network", "network.network.proj", "network.proj", "logits"),
        ("network", "network.sampler", "sampler", "logits"),
        ("network", "network", "", "logits"),
        ("network", "sampler", "sampler", "sample"),
    ],
)
def test_paths_are_those_of_the_engines_model(
    operation: Callable[..., TracedOperation], network: str, path: str, module: str, stage: str
) -> None:
    """Where the model is captured within another module that part is left out, and no module's own name is."""
    from dooly.engines.vllm._model import _in_engine

    row = operation("a", path, stage="logits" if network else "decoder")
    found = _in_engine(row, {}, network)
    assert (found.module, found.placements, found.stage) == (module, ((module, 1),), stage)


def test_a_compiled_model_is_traced_in_pieces() -> None:
    """On a CPU, --no-enforce-eager makes operations of what lies between attentions, whatever modules it spans."""
    from dooly.engines.vllm import trace_vllm_model

    traced = trace_vllm_model(find_model("smollm2-135m"), ServingConfig(dtype="float32", enforce_eager=False))
    rows = [(op.name, op.module, op.count) for op in traced.operations if op.stage == "decoder"]
    attention = [f"model.layers.{i}.self_attn.attn" for i in range(3)]
    assert rows == [("piece", attention[0], 1), ("attn", attention[0], 30), ("piece", attention[1], 29), ("piece", "", 1)]
    assert traced.environment["execution_mode"] == "compiled"
    between = traced.operations[2]
    assert [path for path, _ in between.placements] == attention[1:]
    parameters = [tensor.parameter for tensor in between.inputs if tensor.parameter is not None]
    assert [name.removeprefix("model.layers.") for name in parameters] == [
        "0.self_attn.o_proj.weight",
        "0.post_attention_layernorm.weight",
        "0.mlp.gate_up_proj.weight",
        "0.mlp.down_proj.weight",
        "1.input_layernorm.weight",
        "1.self_attn.qkv_proj.weight",
    ]
    operators = {str(label).split(" ")[0] for label in between.canonical["nodes"]}
    assert {"rsqrt", "mm", "silu"} <= operators, "a compiler sees into norms and activations"
    assert not any("." in operator for operator in operators), "no operator of the engine's own is left"


def test_pieces_around_experts_are_refused(trace_config: TraceConfig) -> None:
    """What cannot be timed inside compiled code is refused before any engine starts."""
    with pytest.raises(UnsupportedModelError, match="cannot be timed within compiled code; leave --no-enforce-eager out"):
        trace_config("qwen3-moe", enforce_eager=False)
