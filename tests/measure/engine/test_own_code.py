"""What of a model is measured as an operation of its own, and what within its layers, on the real engine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dbstore import JsonObject, Store
from dooly.batch import Batch
from dooly.catalog import LAYER, STEP, read_traced
from dooly.device import native_dtype
from dooly.engines import ModelSource, ServingConfig
from dooly.measure import profile
from dooly.measure.engine import _profiler as profiler_module
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from dbstore import Record

pytestmark = pytest.mark.engine

SERVING = ServingConfig(
    dtype=native_dtype(), max_model_len=96, max_num_batched_tokens=16, max_num_seqs=1, kv_cache_memory_bytes=64 << 20
)
OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 3,
    "vocab_size": 512,
    "max_position_embeddings": 96,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""A model whose attention vLLM runs past the call of its module, and whose layers add residuals in code of their own."""


def test_no_operation_lies_within_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All leaf modules of every layer are measured, attention among them; what a layer does itself belongs to the layer.

    Layers of a kind have one sample a step, what they take on average, as the step itself has.
    """
    monkeypatch.setattr(profiler_module, "_REPLAY_BUDGET_NS", 1_000_000)
    monkeypatch.setattr(profiler_module, "_STEP_BUDGET_NS", 1_000_000)
    folder = tmp_path / "olmo2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(OLMO2))
    model, store = ModelSource("olmo2", folder), Store.open(tmp_path / "db", "a")
    result = profile(model, store, SERVING)
    assert result.num_left == 0
    ((traced, environment),) = read_traced(store, model, SERVING)
    leaves = [op for op in traced.operations if op.stage == "decoder"]
    modules = [module for op in leaves for module, _ in op.placements]
    assert not [m for m in modules if any(other.startswith(f"{m}.") for other in modules)]
    assert {op.name for op in leaves if op.stateful} == {"attn"}
    assert all(store.points(op.signature, environment) for op in leaves)
    own = [op for op in traced.operations if op.stage == "engine"]
    step, layer = (max((op for op in own if op.name == name), key=lambda op: op.count) for name in (STEP, LAYER))
    assert layer.count > 1
    steps, layers = (_num_samples(store.read(op.signature, environment)) for op in (step, layer))
    both = steps.keys() & layers.keys()  # of each its own level decides on further passes
    assert both
    assert {key: layers[key] for key in both} == {key: steps[key] for key in both}
    assert load_latency_model(store, model, SERVING).step_ns(Batch((1,), (16,))) > 0


def _num_samples(records: Iterable[Record]) -> dict[tuple[Any, Any], int]:
    """Return how many samples each feasible record has, by its point and its pass."""
    return {(JsonObject(r.point), r.attributes["pass"]): len(r.samples_ns) for r in records if r.infeasible is None}
