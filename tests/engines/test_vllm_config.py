"""From Dooly's settings to vLLM's own: a model's first layers alone, and how its weights are quantised."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from dooly.device import native_dtype
from dooly.engines import ModelSource, ServingConfig, start_engine
from dooly.engines.vllm._config import engine_arguments, engine_config, schedule_arguments
from dooly.errors import InvalidInputError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "num_hidden_layers": 4,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
FLAT = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **TEXT}
NESTED = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral3",
    "text_config": {"model_type": "mistral", **TEXT},
    "vision_config": {"model_type": "pixtral", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 64},
}
UNREAD = {"quantization": {"quant_algo": "FP8"}}
"""A file beside a configuration that vLLM takes no notice of by itself: it names no producer."""
SMALL = {"max_model_len": 128, "max_num_batched_tokens": 128, "max_num_seqs": 4, "kv_cache_memory_bytes": 16 << 20}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., ModelSource]:
    """Return a function that writes a configuration, and what lies beside it."""

    def run(config: dict[str, Any], beside: object = None) -> ModelSource:
        (tmp_path / "config.json").write_text(json.dumps(config))
        if beside is not None:
            (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
        return ModelSource("made-up", tmp_path)

    return run


@pytest.mark.parametrize(
    ("config", "beside", "asked", "taken"),
    [
        (FLAT, None, None, None),
        (NESTED, None, None, None),
        (FLAT, None, "fp8", "fp8"),
        (NESTED, None, "fp8", "fp8"),
        (FLAT, UNREAD, None, "modelopt"),
        (NESTED, UNREAD, None, "modelopt"),
        (FLAT, UNREAD, "modelopt", "modelopt"),
    ],
    ids=["flat", "nested", "flat, asked", "nested, asked", "flat, declared", "nested, declared", "declared and asked"],
)
@pytest.mark.parametrize("num_layers", [None, 1])
def test_first_layers_are_quantised_as_the_model(  # noqa: PLR0913, PLR0917 - a case
    write: Callable[..., ModelSource],
    config: dict[str, Any],
    beside: object,
    asked: str | None,
    taken: str | None,
    num_layers: int | None,
) -> None:
    """As many layers as asked for are read, quantised as the files or the caller say, however they nest."""
    arguments = engine_arguments(write(config, beside), ServingConfig(quantization=asked, **SMALL), num_layers)
    found = arguments.create_model_config()
    assert (found.hf_text_config.num_hidden_layers, found.quantization) == (num_layers or 4, taken)


SCHEDULE: dict[str, Any] = {
    "max_num_active_seqs": 3,
    "max_num_scheduled_tokens": 64,
    "long_prefill_token_threshold": 48,
    "long_prefill_token_threshold_adaptive": True,
    "scheduler_reserve_full_isl": False,
    "watermark": 0.1,
}


def test_the_schedule_is_that_of_a_whole_engine(write: Callable[..., ModelSource], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that serves is set as the simulated one, and the one that measures runs whatever batch it is asked for."""
    from vllm.engine.arg_utils import EngineArgs

    asked, whole, reduced = ServingConfig(dtype=native_dtype(), **SMALL, **SCHEDULE), [], []
    for num_layers, seen in ((None, whole), (1, reduced)):
        engine = start_engine(write(FLAT), asked, num_layers)
        try:
            config = engine.scheduler.scheduler_config
            seen += [getattr(config, name) for name in SCHEDULE]
        finally:
            engine.close()
    assert dict(zip(SCHEDULE, whole, strict=True)) == SCHEDULE
    assert not {*SCHEDULE.items()} & {*zip(SCHEDULE, reduced, strict=True)}
    assert schedule_arguments(ServingConfig(**SMALL)) == {}
    assert schedule_arguments(ServingConfig(enable_chunked_prefill=False)) == {"enable_chunked_prefill": False}
    monkeypatch.delitem(EngineArgs.__dataclass_fields__, "watermark")
    with pytest.raises(InvalidInputError, match=r"^--watermark: vLLM .* has none; leave it out$"):
        schedule_arguments(asked)


def test_an_engine_of_first_layers_starts_quantised(write: Callable[..., ModelSource]) -> None:
    """A method that the caller asks for, of the few that run on every CPU; it takes no float32."""
    serving = ServingConfig(dtype="bfloat16", quantization="int8_per_channel_weight_only", **SMALL)
    engine = start_engine(write(FLAT), serving, 1)
    try:
        assert engine.quantization == "int8_per_channel_weight_only"
        assert len(engine.network.model.layers) == 1
    finally:
        engine.close()


def test_an_engine_that_takes_no_notice_is_refused(write: Callable[..., ModelSource]) -> None:
    """Weights that are declared as quantised are not measured at full precision."""
    with pytest.raises(UnsupportedModelError, match=r"^made-up: its files say that weights are quantised \(modelopt\), but vLLM"):
        start_engine(write(FLAT, UNREAD), ServingConfig(dtype=native_dtype(), **SMALL), hf_overrides={})


@pytest.mark.parametrize("method", ["awq", "compressed-tensors"])
def test_a_method_of_weights_that_are_stored_so_says_what_it_takes(write: Callable[..., ModelSource], method: str) -> None:
    """Asked of a model whose files describe no such weights, it is one line with vLLM's reason, and what to give."""
    remedy = f"where --quantization {method} takes weights that are stored so, give the folder of such a checkpoint; fp8 quan"
    with pytest.raises(UnsupportedModelError, match=rf"^made-up: vLLM refuses the configuration: [^\n]*; {remedy}[^\n]*$"):
        engine_config(write(FLAT), ServingConfig(quantization=method, **SMALL))
