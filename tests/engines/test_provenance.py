from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

from dooly.engines import ServingConfig, find_model
from dooly.tracing import NO_PROVENANCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dooly.tracing import Provenance, TracedModel

    TraceConfig = Callable[..., TracedModel]
    ProvenanceOf = Callable[..., Provenance]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def provenance_of() -> ProvenanceOf:
    """Return a function that names the sizes of a listed model, as one of some ranks has them."""
    from dooly.engines.vllm._build import meta_model
    from dooly.engines.vllm._config import engine_config

    @cache
    def run(name: str, **layout: object) -> Provenance:
        model, serving = find_model(name), ServingConfig(**layout)  # type: ignore[arg-type]
        with meta_model(model, serving, engine_config(model, serving), 0) as (_, provenance):
            return provenance

    return run


def test_costs_are_written_over_the_configuration(trace_config: TraceConfig) -> None:
    """FLOPs and bytes are closed forms over configuration fields, and have the same values as with the sizes put in."""
    down = next(op for op in trace_config("llama").operations if op.name == "down_proj")
    assert down.flops == "2*hidden_size*intermediate_size*num_tokens"
    assert down.bytes == "2*hidden_size*intermediate_size + 2*hidden_size*num_tokens + 2*intermediate_size*num_tokens"
    assert down.request_flops == f"{2 * 512 * 512}*num_tokens"


def test_a_padded_vocabulary_says_so(trace_config: TraceConfig) -> None:
    """A vocabulary that the engine rounds up is written with its rounding; one that needs none is not."""
    embedding = next(op for op in trace_config("llama", {"vocab_size": 500}).operations if op.name == "embed_tokens")
    assert (embedding.inputs[0].shape[0].expr, embedding.inputs[0].shape[0].value) == ("64*(((vocab_size + 63)//64))", 512)


@pytest.mark.parametrize("changes", [{}, {"head_dim": 32, "vocab_size": 500}])
def test_names_leave_signatures_alone(
    trace_config: TraceConfig, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    """With no configuration names at all, the operations have the same signatures, costs and counts."""
    named = trace_config("llama", changes)
    monkeypatch.setattr("dooly.engines.vllm._build.configured_sizes", lambda *_: NO_PROVENANCE)
    plain = trace_config("llama", changes)
    facts = [
        [(op.module, op.signature, op.count, op.request_flops, op.request_bytes, op.canonical) for op in model.operations]
        for model in (named, plain)
    ]
    assert facts[0] == facts[1]
    assert named.operations != plain.operations


@pytest.mark.parametrize(
    ("model", "path", "expr"),
    [
        ("qwen3-30b-a3b", "mlp.experts.routed_experts.w13_weight.size(1)", "2*moe_intermediate_size"),
        ("qwen3-30b-a3b", "mlp.gate.weight.size(0)", "num_experts"),
        ("gpt-oss-20b", "mlp.experts.routed_experts.w2_weight.size(2)", "intermediate_size"),
        ("gpt-oss-20b", "mlp.router.weight.size(1)", "hidden_size"),
        ("deepseek-v2-lite", "mlp.experts.routed_experts.w2_weight.size(0)", "n_routed_experts"),
        ("deepseek-v2-lite", "mlp.shared_experts.down_proj.weight.size(1)", "moe_intermediate_size*n_shared_experts"),
        ("deepseek-v2-lite", "self_attn.kv_a_proj_with_mqa.weight.size(0)", "kv_lora_rank + qk_rope_head_dim"),
    ],
)
def test_experts_are_named_by_the_configuration(provenance_of: ProvenanceOf, model: str, path: str, expr: str) -> None:
    """The sizes of mixtures of experts and of latent attention are named as in `config.json`, equal values apart."""
    assert str(provenance_of(model).sizes[f"model.layers.1.{path}"]) == expr


@pytest.mark.parametrize("error", [RuntimeError("shape\nmismatch"), ZeroDivisionError(), IndexError("out of range")])
def test_code_that_refuses_tracked_sizes_gives_no_names(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the model's code raises in the second build, the trace goes on without names, and a warning says why."""
    from dooly.engines.vllm._config import engine_config
    from dooly.engines.vllm._provenance import configured_sizes

    def build(_config: object) -> nn.Module:
        raise error

    model = find_model("smollm2-135m")
    assert configured_sizes(engine_config(model, ServingConfig()), model.config, build) is NO_PROVENANCE
    assert f"fails: {type(error).__name__}: " in caplog.messages[-1]


def test_ranks_divide_the_sizes(provenance_of: ProvenanceOf) -> None:
    """Where ranks share each layer and its experts, their number is a name too."""
    sizes = provenance_of("qwen3-30b-a3b", tensor_parallel_size=2, enable_expert_parallel=True).sizes
    layer = "model.layers.1."
    assert str(sizes[f"{layer}self_attn.num_heads"]) == "(num_attention_heads//tensor_parallel_size)"
    assert str(sizes[f"{layer}self_attn.o_proj.weight.size(1)"]) == "((head_dim*num_attention_heads)//tensor_parallel_size)"
    assert str(sizes[f"{layer}mlp.experts.routed_experts.w13_weight.size(1)"]) == "2*moe_intermediate_size"


def test_experts_that_the_graph_does_not_show_are_named(trace_config: TraceConfig) -> None:
    """The parameters that a mixture of experts holds are written over the configuration in the table too."""
    experts = next(op for op in trace_config("qwen3-moe").operations if op.name == "experts")
    shapes = {str(t.parameter).rpartition(".")[2]: [d.expr for d in t.shape] for t in experts.inputs if t.parameter}
    assert shapes["w13_weight"] == ["num_experts", "2*moe_intermediate_size", "hidden_size"]
