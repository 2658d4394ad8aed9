from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import pytest
import sympy

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from dooly.tracing import TracedModel, TracedOperation

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def deepseek(trace_config: TraceConfig) -> dict[str, TracedOperation]:
    """Return the operations of a model with latent attention and shared experts, by module."""
    return {op.module: op for op in trace_config("deepseek").operations}


def flops_of_one_token(operation: TracedOperation) -> int:
    """Return what an operation computes for one token that attends to one position."""
    form = sympy.sympify(operation.request_flops)
    return int(form.subs(dict.fromkeys(map(str, form.free_symbols), 1)))


def sizes(operation: TracedOperation) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes of an operation's parameters, by the last two parts of their paths."""
    return {
        ".".join(t.parameter.split(".")[-2:]): tuple(d.value for d in t.shape)
        for t in operation.inputs
        if t.parameter is not None
    }


def test_a_mixture_of_experts_is_one_operation(deepseek: dict[str, TracedOperation]) -> None:
    """Router, experts and shared experts are one stateful operation, whose attributes say how tokens are routed."""
    experts = deepseek["model.layers.1.mlp.experts"]
    assert experts.stateful
    assert experts.count == 3
    expected = {"num_experts": 16, "num_local_experts": 16, "top_k": 4, "intermediate_size": 128, "activation": "silu"}
    assert expected.items() <= experts.attributes.items()
    assert sizes(experts) == {
        "gate.weight": (16, 512),
        "routed_experts.w13_weight": (16, 256, 512),
        "routed_experts.w2_weight": (16, 512, 128),
        "gate_up_proj.weight": (512, 512),
        "down_proj.weight": (512, 256),
    }
    assert not any(module.startswith("model.layers.1.mlp.shared") for module in deepseek)


def test_a_token_pays_for_the_experts_it_goes_through(deepseek: dict[str, TracedOperation]) -> None:
    """One token costs two FLOPs a weight of four experts, of the shared ones and of the router."""
    experts = deepseek["model.layers.1.mlp.experts"]
    one_expert = 3 * 512 * 128
    assert flops_of_one_token(experts) == 2 * (4 * one_expert + 3 * 512 * 256 + 16 * 512)
    assert experts.request_dims == ("num_tokens",)
    assert not experts.depends_on_context


def test_latent_attention_holds_its_up_projection(deepseek: dict[str, TracedOperation]) -> None:
    """The up-projection belongs to the attention, which absorbs it; its cost is that of the latent space."""
    attention = deepseek["model.layers.0.self_attn.mla_attn.mla_attn"]
    heads, rank, nope, rope, value = 8, 64, 32, 16, 32
    assert sizes(attention) == {"kv_b_proj.weight": (heads * (nope + value), rank)}
    assert attention.attributes["kv_lora_rank"] == rank
    up_projection = prod((heads * (nope + value), rank))
    assert flops_of_one_token(attention) == 2 * up_projection + 2 * heads * (2 * rank + rope)
    assert attention.count == 4


def test_layer_kinds_are_counted_apart(deepseek: dict[str, TracedOperation]) -> None:
    """The dense layer and the layers with experts share what they have in common."""
    counts = {op.module: op.count for op in deepseek.values()}
    assert counts["model.layers.0.mlp.down_proj"] == 1
    assert counts["model.layers.0.self_attn.mla_attn.q_proj"] == 4


def test_windows_and_soft_caps_are_other_operations(trace_config: TraceConfig) -> None:
    """Attention over a sliding window is another operation than full attention, and each counts its layers."""
    changes = {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "sliding_window": 128,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 64,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    traced = trace_config("llama", changes)
    found = {op.attributes["sliding_window"]: op for op in traced.operations if op.name == "attn"}
    assert {window: op.count for window, op in found.items()} == {128: 2, None: 2}
    assert found[128].signature != found[None].signature
    assert {op.attributes["logits_soft_cap"] for op in found.values()} == {50.0}


def test_what_attends_to_some_tokens_alone_says_so() -> None:
    """Others have no such attribute, so that their signatures are as they were."""
    from torch import nn
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    from dooly.engines.vllm._stateful import stateful_attributes

    class Layer(nn.Module, AttentionLayerBase):
        get_attn_backend = get_kv_cache_spec = None
        kv_cache_dtype = "fp8"

    layer = Layer()
    assert "is_sparse" not in (stateful_attributes(layer) or {})
    layer.use_sparse = True
    assert (stateful_attributes(layer) or {})["is_sparse"] is True


def test_watched_kernels_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of the instance's own, and a scope around another, are there again when a scope ends."""
    from torch import nn

    from dooly.engines.vllm import _stateful

    class Kernels:
        def do_kv_cache_update(self) -> str:
            return "class"

    def own() -> str:
        return "own"

    network, kernels, seen = nn.ModuleDict({"attn": nn.Module()}), Kernels(), []
    kernels.forward = own
    network["attn"].impl = kernels
    monkeypatch.setattr(_stateful, "is_watchable", lambda module: module is network["attn"])

    def watching(name: str) -> AbstractContextManager[None]:
        return _stateful.watch_attention(network, lambda path: seen.append((name, path)), lambda _path: None)

    with watching("outer"):
        with watching("inner"):
            assert (kernels.forward(), kernels.do_kv_cache_update()) == ("own", "class")
        assert seen == [("inner", "attn"), ("outer", "attn")] * 2
        assert (kernels.forward(), kernels.do_kv_cache_update()) == ("own", "class")
        assert seen[4:] == [("outer", "attn")] * 2
    assert vars(kernels) == {"forward": own}
