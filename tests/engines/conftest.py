"""Small made-up models, written as configurations and traced as vLLM runs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dooly.engines import ModelSource, ServingConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from dooly.tracing import TracedModel

    TraceConfig = Callable[..., TracedModel]

LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 512,
    "vocab_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A model whose hidden, query, intermediate and vocabulary sizes are all equal."""

QWEN3_MOE: Mapping[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
"""A model with a mixture of sixteen experts in every layer."""

DEEPSEEK: Mapping[str, Any] = {
    **LLAMA,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "num_key_value_heads": 8,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 16,
    "n_shared_experts": 2,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
"""A model with latent attention, one dense layer, and mixtures with shared experts behind it."""

OLMO2: Mapping[str, Any] = {**LLAMA, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2"}
"""A model that vLLM 0.32 has no code of its own for: it takes it from Transformers."""

CONFIGS = {"llama": LLAMA, "qwen3-moe": QWEN3_MOE, "deepseek": DEEPSEEK, "olmo2": OLMO2}


@pytest.fixture(scope="session")
def trace_config(tmp_path_factory: pytest.TempPathFactory) -> TraceConfig:
    """Return a function that traces one of `CONFIGS`, with some of its fields changed, as one rank of a layout runs it."""
    from dooly.engines.vllm import trace_vllm_model

    def run(
        name: str,
        changes: Mapping[str, Any] | None = None,
        *,
        rank: int = 0,
        hardware: str | None = None,
        **serving: Any,  # noqa: ANN401 - settings
    ) -> TracedModel:
        folder: Path = tmp_path_factory.mktemp("model")
        (folder / "config.json").write_text(json.dumps({**CONFIGS[name], **(changes or {})}))
        return trace_vllm_model(ModelSource("made-up", folder), ServingConfig(**serving), pipeline_rank=rank, hardware=hardware)

    return run


@pytest.fixture(scope="session")
def configs() -> Mapping[str, Mapping[str, Any]]:
    """Return `CONFIGS`."""
    return CONFIGS


@pytest.fixture
def llama() -> dict[str, Any]:
    """Return the configuration of the model of equal sizes."""
    return dict(LLAMA)
