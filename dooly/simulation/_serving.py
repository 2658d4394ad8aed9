"""From an engine's serving settings to the simulator's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.simulation._scheduler_config import SchedulerConfig

if TYPE_CHECKING:
    from dooly.engines import ServingConfig

_MIN_BLOCKS = 2
"""The null block and one to use."""


def scheduler_config(
    serving: ServingConfig, num_kv_blocks: int, block_size: int, *, async_scheduling: bool = False
) -> SchedulerConfig:
    """Return the simulator's scheduler settings for an engine's serving settings."""
    if num_kv_blocks < _MIN_BLOCKS:
        raise InvalidInputError(
            f"--kv-cache-memory-bytes: {serving.kv_cache_bytes} makes {num_kv_blocks} KV blocks of {block_size} tokens; "
            f"give enough for at least {_MIN_BLOCKS}"
        )
    return SchedulerConfig(
        max_model_len=serving.max_model_len,
        num_kv_blocks=num_kv_blocks,
        max_num_seqs=serving.max_num_seqs,
        max_num_batched_tokens=serving.max_num_batched_tokens,
        block_size=block_size,
        async_scheduling=async_scheduling,
    )
