"""Which KV cache tells all that a workload needs, and whether each of its requests fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import WorkloadError
from dooly.kv_cache_groups import FULL_ATTENTION
from dooly.kv_policy import Term
from dooly.simulation._block_kv_cache import BlockKVCache
from dooly.simulation._columns import column
from dooly.simulation._counted_kv_cache import CountedKVCache
from dooly.simulation._policy_kv_cache import PolicyKVCache
from dooly.simulation._speculative_kv_cache import SpeculativeKVCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._kv_cache import KVCache
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


def make_kv_cache(requests: Sequence[Request], config: SchedulerConfig) -> KVCache:
    """Return the KV cache for a workload: by counts where these tell all, which is faster, else block by block."""
    if config.speculative is not None:
        return SpeculativeKVCache(requests, config)
    if config.kv_policy is not None and config.kv_policy.changes(Term.BLOCKS):
        return PolicyKVCache(len(requests), config, config.kv_policy)
    shares = config.enable_prefix_caching and (any(column(requests, "prefix_ids")) or any(column(requests, "turn")))
    if config.kv_cache_groups == FULL_ATTENTION and not shares:
        return CountedKVCache(
            len(requests), config.num_kv_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
    return BlockKVCache(requests, config)


def refuse_too_long(requests: Sequence[Request], kv_cache: KVCache, config: SchedulerConfig) -> None:
    """Refuse a workload with a request that could never finish.

    Raises:
        WorkloadError: It is too long for the model, or for an empty KV cache.
    """
    num_tokens = column(requests, "num_prompt_tokens") + column(requests, "num_output_tokens")
    over_model = np.flatnonzero(num_tokens > config.max_model_len)
    if over_model.size:
        request = requests[int(over_model[0])]
        raise WorkloadError(
            f"request {request.request_id}: {request.num_prompt_tokens} prompt + {request.num_output_tokens} output tokens "
            f"exceed max_model_len {config.max_model_len} ({over_model.size} such requests); raise it or leave them out"
        )
    # The last token is generated but never computed, so it takes no slot.
    over_cache = np.flatnonzero(kv_cache.num_blocks_for(num_tokens - 1) > kv_cache.capacity)
    if over_cache.size:
        request = requests[int(over_cache[0])]
        raise WorkloadError(
            f"request {request.request_id}: {request.num_prompt_tokens} prompt + {request.num_output_tokens} output tokens "
            f"exceed the KV cache of {kv_cache.capacity} blocks of {config.block_size} "
            f"({over_cache.size} such requests, and one block is the engine's own); give it more, or leave them out"
        )
