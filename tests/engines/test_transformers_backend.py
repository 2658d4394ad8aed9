"""Models that vLLM has no code of its own for and runs through Transformers, with its attention and linear layers put in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sympy

from dooly.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.tracing import TracedModel

    TraceConfig = Callable[..., TracedModel]

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

NUM_LAYERS = 4


@pytest.fixture(scope="module")
def olmo(trace_config: TraceConfig) -> TracedModel:
    """Return the operations of a small OLMo 2."""
    return trace_config("olmo2")


def test_attention_is_found(olmo: TracedModel) -> None:
    """Attention is one stateful operation of every layer, with its heads, although the model runs only its `forward`."""
    (attention,) = (op for op in olmo.operations if op.name == "attn")
    assert attention.stateful
    assert attention.count == NUM_LAYERS
    assert {name: attention.attributes[name] for name in ("kind", "num_heads", "num_kv_heads", "head_size")} == {
        "kind": "Attention",
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_size": 64,
    }


def test_modules_with_another_forward_keep_their_paths(olmo: TracedModel) -> None:
    """Modules that vLLM fuses get another `forward`; what they call still goes by its place in the model."""
    linear = {op.module for op in olmo.operations if op.module.endswith("_proj")}
    assert linear == {f"model.layers.0.{name}_proj" for name in ("self_attn.qkv", "self_attn.o", "mlp.gate_up", "mlp.down")}


def test_the_work_is_that_of_the_weights(olmo: TracedModel) -> None:
    """One decode takes two operations a weight, the embedding lookup apart, and four a cached position, head and channel."""
    hidden = inner = vocabulary = query = 512
    weights = NUM_LAYERS * (hidden * (query + 2 * query // 2) + query * hidden + 3 * hidden * inner) + hidden * vocabulary
    one = {"num_tokens": 1, "num_reqs": 1, "query_key_pairs": 100, "kv_tokens": 100}
    flops = sum(op.count * int(sympy.sympify(op.request_flops).subs(one)) for op in olmo.operations)
    assert flops == 2 * weights + NUM_LAYERS * 4 * 100 * query


def test_two_ranks_share_the_work(trace_config: TraceConfig) -> None:
    """Norms over a divided query gather it first; the projections back reduce over the ranks."""
    operations = trace_config("olmo2", tensor_parallel_size=2).operations
    collectives = {(op.module.removeprefix("model.layers.0."), op.name) for op in operations if op.name.startswith("all_")}
    assert {
        ("self_attn.q_norm", "all_gather"),
        ("self_attn.o_proj", "all_reduce"),
        ("mlp.down_proj", "all_reduce"),
    } <= collectives


def test_the_classes_of_transformers_stay(trace_config: TraceConfig) -> None:
    """The model's class computes for others what it did: vLLM would decorate it for its compiler."""
    from transformers import Olmo2Config, Olmo2Model

    before = (Olmo2Model.__bases__, dict(vars(Olmo2Model)))
    trace_config("olmo2", {"num_hidden_layers": 1})
    assert (Olmo2Model.__bases__, dict(vars(Olmo2Model))) == before
    assert Olmo2Model(Olmo2Config(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))


def test_attention_outside_the_model_is_refused(trace_config: TraceConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that no call shows would be left out unseen: that is an error of one line, which names the other engine."""
    from dooly.engines.vllm import _build

    monkeypatch.setattr(_build, "show_attention_calls", lambda _network: None)
    with pytest.raises(UnsupportedModelError, match=r"^made-up: [^\n]*outside the model's module calls[^\n]*--engine torch$"):
        trace_config("olmo2", {"num_hidden_layers": 1})
