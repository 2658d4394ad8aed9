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
    with pytest.raises(InvalidInputError, match=r"makes 1 KV blocks of 16 tokens; give enough for at least 2$"):
        scheduler_config(replace(serving, kv_cache_memory_bytes=16 * 131_072), latency)
