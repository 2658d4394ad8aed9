from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import pytest

from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.predict import load_latency_model
from dooly.simulation import SchedulerConfig, scheduler_config

if TYPE_CHECKING:
    from dooly.predict import LatencyModel


def test_both_settings_have_the_same_defaults() -> None:
    """Whoever names no limit gets the same one for the simulator as for the engine."""
    ours, theirs = ({field.name: field.default for field in fields(kind)} for kind in (SchedulerConfig, ServingConfig))
    both = ours.keys() & theirs.keys() - {"max_model_len", "async_scheduling"}  # which the latency model knows
    assert {"max_num_seqs", "max_num_batched_tokens", "watermark", "enable_chunked_prefill"} <= both
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}


def test_what_limits_steps_further_reaches_the_scheduler() -> None:
    """Each setting of the engine's schedule is the simulator's, under the same name but for the policy."""
    settings = {
        "max_num_active_seqs": 5,
        "max_num_scheduled_tokens": 1800,
        "long_prefill_token_threshold": 100,
        "watermark": 0.01,
        "long_prefill_token_threshold_adaptive": True,
        "enable_chunked_prefill": False,
        "scheduler_reserve_full_isl": False,
    }
    serving = ServingConfig(scheduling_policy="priority", max_model_len=1024, **settings)
    config = scheduler_config(serving, load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200"))
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.policy == "priority"


def test_the_scheduler_is_set_as_the_engine_is_served() -> None:
    """Limits come from the serving settings, the cache and the order of steps from what predicts them."""
    serving = ServingConfig(max_model_len=4096, max_num_batched_tokens=1024, max_num_seqs=7, async_scheduling=False)
    latency = load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200")
    config = scheduler_config(serving, latency)
    assert (config.max_model_len, config.max_num_batched_tokens, config.max_num_seqs) == (4096, 1024, 7)
    assert (config.num_kv_blocks, config.block_size) == (latency.num_kv_blocks(serving), 16)
    assert not config.async_scheduling
    assert config.enable_prefix_caching
    assert not scheduler_config(replace(serving, enable_prefix_caching=False), latency).enable_prefix_caching
    with pytest.raises(
        InvalidInputError, match=r"^--kv-cache-memory-bytes: the KV cache has 1 blocks of 16 tokens; give enough for at least 2$"
    ):
        scheduler_config(replace(serving, kv_cache_memory_bytes=16 * 131_072), latency)
    with pytest.raises(InvalidInputError, match=r"^--num-gpu-blocks-override: the KV cache has 1 blocks"):
        scheduler_config(replace(serving, num_gpu_blocks_override=1), latency)


def test_the_longest_request_must_fit_in_the_cache() -> None:
    """As an engine that would not start; blocks that are given by number are taken as they are."""
    serving = ServingConfig(max_model_len=4096, kv_cache_memory_bytes=200 * 16 * 131_072)
    latency = load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200")
    with pytest.raises(InvalidInputError, match=r"^--max-model-len: .* 4,096 tokens needs 256 KV blocks of 16, and .* 200;"):
        scheduler_config(serving, latency)
    assert scheduler_config(replace(serving, max_model_len=3200), latency).num_kv_blocks == 200
    assert scheduler_config(replace(serving, num_gpu_blocks_override=100), latency).num_kv_blocks == 100


def made_up(serving: ServingConfig, *kinds: dict[str, object]) -> LatencyModel:
    """Return a latency model whose table has an attention operation for each of these changes of its attributes."""
    latency = copy.copy(load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200"))
    (attention,) = (op for op in latency.traced.operations if op.depends_on_context)
    made = tuple(replace(attention, attributes={**attention.attributes, **changes}) for changes in kinds)
    latency.traced = replace(latency.traced, operations=made)
    return latency


@pytest.mark.parametrize(("measured", "scheduled"), [("sarathi", "vllm"), ("transformers", "transformers"), ("vllm", "vllm")])
def test_an_engine_without_rules_of_its_own_is_scheduled_as_vllm(measured: str, scheduled: str) -> None:
    """What the latencies were measured in, an import's engine too, tells whose rules the schedule follows."""
    serving = ServingConfig(max_model_len=4096, num_gpu_blocks_override=500)
    latency = made_up(serving, {})
    latency.environment = replace(latency.environment, engine=measured)
    assert scheduler_config(serving, latency).engine == scheduled


def test_a_model_with_windows_is_scheduled_by_its_groups() -> None:
    """What its layers keep comes from its table of operations, whether its blocks are counted or given."""
    serving = ServingConfig(max_model_len=4096, num_gpu_blocks_override=500)
    config = scheduler_config(serving, made_up(serving, {"sliding_window": 128}, {}))
    assert config.num_kv_blocks == 500
    assert [(group.kind.value, group.window) for group in config.kv_cache_groups] == [
        ("sliding_window", 128),
        ("full_attention", None),
    ]


def test_a_cache_that_is_not_modelled_is_refused_even_with_blocks_given() -> None:
    """A number of blocks says nothing of which of them a request holds."""
    serving = ServingConfig(num_gpu_blocks_override=500)
    with pytest.raises(UnsupportedModelError, match=r"keeps a cache of its own \(Indexer\)"):
        scheduler_config(serving, made_up(serving, {"kind": "Indexer", "num_kv_heads": None}))


def test_a_latency_model_of_another_layout_is_refused() -> None:
    """Its blocks and steps would be those of other settings."""
    serving = ServingConfig(tensor_parallel_size=4, max_model_len=4096)
    latency = load_latency_model(model=find_model("llama-3.1-70b"), serving=serving, hardware="h200")
    with pytest.raises(InvalidInputError, match=r"tensor_parallel_size is 1, and was 4 when the latency model was made"):
        scheduler_config(ServingConfig(), latency)
