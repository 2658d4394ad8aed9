from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedModel, TracedOperation

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

COLLECTIVES = ("all_reduce", "all_gather", "gather", "send", "receive")


@pytest.fixture(scope="module")
def whole(trace_config: TraceConfig) -> dict[str, TracedOperation]:
    """Return the operations of a small model on one rank, by name."""
    return {op.name: op for op in trace_config("llama").operations}


@pytest.fixture(scope="module")
def half(trace_config: TraceConfig) -> TracedModel:
    """Return one of two tensor-parallel ranks of the same model."""
    return trace_config("llama", tensor_parallel_size=2)


def weights(operation: TracedOperation) -> tuple[int | None, ...]:
    """Return the shape of an operation's first parameter."""
    return next(tuple(d.value for d in t.shape) for t in operation.inputs if t.parameter is not None)


def test_layers_are_sharded(half: TracedModel, whole: dict[str, TracedOperation]) -> None:
    """Column-parallel layers halve their outputs, row-parallel ones their inputs, attention its heads; norms stay whole."""
    found = {op.name: op for op in half.operations}
    assert weights(found["qkv_proj"]) == (512, 512)
    assert weights(found["gate_up_proj"]) == (512, 512)
    assert weights(found["o_proj"]) == weights(found["down_proj"]) == (512, 256)
    assert weights(found["embed_tokens"]) == (256, 512)
    assert (found["attn"].attributes["num_heads"], found["attn"].attributes["num_kv_heads"]) == (4, 2)
    assert found["input_layernorm"].signature == whole["input_layernorm"].signature


@pytest.mark.parametrize("ranks", [2, 8])
def test_a_large_model_is_sharded(ranks: int) -> None:
    """Each rank of Llama-3.1-70B has its share of the heads and of each layer, in every layer."""
    from dooly.engines.vllm import trace_vllm_model

    traced = trace_vllm_model(find_model("llama-3.1-70b"), ServingConfig(tensor_parallel_size=ranks))
    found = {op.name: op for op in traced.operations}
    assert weights(found["qkv_proj"]) == ((64 + 2 * 8) * 128 // ranks, 8192)
    assert weights(found["o_proj"]) == (8192, 8192 // ranks)
    assert weights(found["gate_up_proj"]) == (2 * 28672 // ranks, 8192)
    assert weights(found["down_proj"]) == (8192, 28672 // ranks)
    assert (found["attn"].attributes["num_heads"], found["attn"].attributes["num_kv_heads"]) == (64 // ranks, 8 // ranks)
    reduced = {op.module.rpartition(".")[2]: op for op in traced.operations if op.name == "all_reduce"}
    assert {name: op.count for name, op in reduced.items()} == {"embed_tokens": 1, "o_proj": 80, "down_proj": 80}
    assert {op.bytes for op in reduced.values()} == {"2*hidden_size*num_tokens"}
    assert found["qkv_proj"].count == 80


def test_collectives_are_operations_with_their_payload(half: TracedModel) -> None:
    """Each row-parallel layer and the embedding end in an all-reduce of the hidden states; logits are gathered."""
    found = [op for op in half.operations if op.name in COLLECTIVES]
    places = {(op.name, op.module.rpartition(".")[2]): op for op in found}
    reduced = {("all_reduce", name) for name in ("embed_tokens", "o_proj", "down_proj")}
    assert reduced <= places.keys()
    assert places["all_reduce", "o_proj"].count == 4
    assert {op.flops for op in found} == {"0"}
    assert {places[place].request_bytes for place in reduced} == {"1024*num_tokens"}
    (logits,) = (op for op in found if op.stage == "logits")
    assert logits.request_bytes == "1024*num_reqs"


def test_the_rank_count_identifies_a_collective(trace_config: TraceConfig, half: TracedModel) -> None:
    """An all-reduce over four ranks is another operation than one over two, of the same payload."""
    quarter = trace_config("llama", tensor_parallel_size=4)
    signatures = [{op.signature for op in traced.operations if op.name == "all_reduce"} for traced in (half, quarter)]
    assert list(map(len, signatures)) == [1, 1]
    assert signatures[0].isdisjoint(signatures[1])


def test_experts_are_shared_out_whole(trace_config: TraceConfig) -> None:
    """With expert parallel a rank holds half of the experts whole; without, half of each; an all-reduce follows either."""
    found = {}
    for whole_experts in (False, True):
        traced = trace_config("qwen3-moe", tensor_parallel_size=2, enable_expert_parallel=whole_experts)
        (experts,) = (op for op in traced.operations if op.name == "experts")
        shapes = {t.parameter.rpartition(".")[2]: tuple(d.value for d in t.shape) for t in experts.inputs if t.parameter}
        found[whole_experts] = (experts.attributes["num_local_experts"], shapes["w2_weight"])
        assert any(op.name == "all_reduce" and op.module == experts.module and not op.stateful for op in traced.operations)
    assert found == {False: (16, (16, 512, 64)), True: (8, (8, 512, 128))}


def test_pipeline_ranks_hand_over_hidden_states(trace_config: TraceConfig, whole: dict[str, TracedOperation]) -> None:
    """The first rank embeds and sends, the last receives and samples; the layers between them are shared out."""
    ranks = [{op.name: op for op in trace_config("llama", pipeline_parallel_size=2, rank=r).operations} for r in range(2)]
    first, last = ranks
    assert {"embed_tokens", "send"} <= first.keys()
    assert not {"receive", "norm", "logits_processor", "sampler"} & first.keys()
    assert {"receive", "norm", "logits_processor", "sampler"} <= last.keys()
    assert not {"embed_tokens", "send"} & last.keys()
    assert [found["qkv_proj"].count for found in ranks] == [2, 2]
    assert {found["qkv_proj"].signature for found in ranks} == {whole["qkv_proj"].signature}
    assert first["send"].request_bytes == last["receive"].request_bytes == "1024*num_tokens"
    assert last["qkv_proj"].module == "model.layers.2.self_attn.qkv_proj"


def test_heads_that_do_not_divide_are_refused() -> None:
    """Heads that the ranks cannot share evenly are an error of one line."""
    from dooly.engines.vllm import trace_vllm_model

    reason = r"^llama-3.1-8b: vLLM [^\n]*\(32\) must be divisible by tensor parallel size \(3\)[^\n]*$"
    with pytest.raises(UnsupportedModelError, match=reason):
        trace_vllm_model(find_model("llama-3.1-8b"), ServingConfig(tensor_parallel_size=3))


def test_a_pipeline_rank_that_is_none_is_refused() -> None:
    """Ranks are counted from nought, below the pipeline's size."""
    from dooly.engines.vllm import trace_vllm_model

    with pytest.raises(InvalidInputError, match="--pipeline-rank: 2 is none of the pipeline's ranks 0 to 1"):
        trace_vllm_model(find_model("llama-3.1-8b"), ServingConfig(pipeline_parallel_size=2), pipeline_rank=2)
