from __future__ import annotations

from dataclasses import fields, replace

import pytest

from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.predict import load_latency_model
from dooly.simulation import SchedulerConfig, scheduler_config


def test_both_settings_have_the_same_defaults() -> None:
    """Whoever names no limit gets the same one for the simulator as for the engine."""
    ours, theirs = ({field.name: field.default for field in fields(kind)} for kind in (SchedulerConfig, ServingConfig))
    limits = {name for name in ours.keys() & theirs.keys() if name.startswith("max_num")}
    assert limits == {"max_num_seqs", "max_num_batched_tokens"}
    assert {name: ours[name] for name in limits} == {name: theirs[name] for name in limits}


def test_the_scheduler_is_set_as_the_engine_is_served() -> None:
    """Limits come from the serving settings, the cache and the order of steps from what predicts them."""
    serving = ServingConfig(max_model_len=4096, max_num_batched_tokens=1024, max_num_seqs=7, async_scheduling=False)
    latency = load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200")
    config = scheduler_config(serving, latency)
    assert (config.max_model_len, config.max_num_batched_tokens, config.max_num_seqs) == (4096, 1024, 7)
    assert (config.num_kv_blocks, config.block_size) == (latency.num_kv_blocks(serving), 16)
    assert not config.async_scheduling
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
    with pytest.raises(InvalidInputError, match=r"^--max-model-len: a request of 4,096 tokens .* holds 3,200; lower it"):
        scheduler_config(serving, latency)
    assert scheduler_config(replace(serving, max_model_len=3200), latency).num_kv_blocks == 200
    assert scheduler_config(replace(serving, num_gpu_blocks_override=100), latency).num_kv_blocks == 100
