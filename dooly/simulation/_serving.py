"""From an engine's serving settings to the simulator's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.simulation._scheduler_config import SchedulerConfig

if TYPE_CHECKING:
    from dooly.engines import ServingConfig
    from dooly.predict import LatencyModel

_MIN_BLOCKS = 2
"""The null block and one to use."""


def scheduler_config(serving: ServingConfig, latency: LatencyModel) -> SchedulerConfig:
    """Return the simulator's scheduler settings for an engine's serving settings.

    Args:
        serving: The settings that the latency model was made with.
        latency: Tells the KV cache that the engine makes of them, and whether it schedules ahead.

    Raises:
        InvalidInputError: The KV cache is too small for the longest request, for which no engine would start.
        UnsupportedModelError: The model caches something that the scheduler does not model.
    """
    num_kv_blocks, block_size = latency.num_kv_blocks(serving), latency.block_size
    if num_kv_blocks < _MIN_BLOCKS:
        given = "--kv-cache-memory-bytes" if serving.num_gpu_blocks_override is None else "--num-gpu-blocks-override"
        raise InvalidInputError(
            f"{given}: the KV cache has {num_kv_blocks} blocks of {block_size} tokens; give enough for at least {_MIN_BLOCKS}"
        )
    room = num_kv_blocks * block_size
    if serving.max_model_len > room and serving.num_gpu_blocks_override is None:
        raise InvalidInputError(
            f"--max-model-len: a request of {serving.max_model_len:,} tokens does not fit in the KV cache, which holds {room:,}; "
            "lower it, or make room by more --tensor-parallel-size, --gpu-memory-utilization or --kv-cache-memory-bytes"
        )
    return SchedulerConfig(
        max_model_len=serving.max_model_len,
        num_kv_blocks=num_kv_blocks,
        max_num_seqs=serving.max_num_seqs,
        max_num_batched_tokens=serving.max_num_batched_tokens,
        block_size=block_size,
        async_scheduling=latency.schedules_ahead,
    )
