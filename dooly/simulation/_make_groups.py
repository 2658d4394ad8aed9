"""The groups of a KV cache, each with what its kind of attention keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.kv_cache_groups import AttentionKind
from dooly.simulation._cache_groups import CacheGroup, ChunkedLocalGroup, SlidingWindowGroup
from dooly.simulation._mamba_group import MambaGroup

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.kv_cache_groups import KVCacheGroup
    from dooly.simulation._block_hashes import BlockHashes
    from dooly.simulation._block_pool import BlockPool
    from dooly.simulation._scheduler_config import SchedulerConfig


def make_group(pool: BlockPool, hashes: BlockHashes | None, group: KVCacheGroup, config: SchedulerConfig) -> CacheGroup:
    """Return the blocks of one group, none held."""
    size = config.block_size
    if group.kind is AttentionKind.MAMBA:
        if hashes is None:  # one state a request, and no position but the last
            return CacheGroup(pool, hashes, config.max_model_len)
        return MambaGroup(pool, hashes, size, group.num_prefill_checkpoint_blocks)
    if group.window is None:
        return CacheGroup(pool, hashes, size)
    # What a step computes stays until it has run, be it outside the window by then.
    under_way = config.max_num_batched_tokens * (1 + config.async_scheduling)
    if group.kind is AttentionKind.SLIDING_WINDOW:
        return SlidingWindowGroup(pool, hashes, size, group.window, min(group.window - 1 + under_way, config.max_model_len))
    return ChunkedLocalGroup(pool, hashes, size, group.window, min(group.window + under_way, config.max_model_len))


def alike(groups: Sequence[CacheGroup], described: Sequence[KVCacheGroup]) -> list[list[CacheGroup]]:
    """Return groups that keep the same tokens together, those that keep all first: their blocks are found or missed at once."""
    kinds: dict[KVCacheGroup, list[CacheGroup]] = {}
    for group, description in zip(groups, described, strict=True):
        kinds.setdefault(description, []).append(group)
    return sorted(kinds.values(), key=lambda peers: peers[0].drops_blocks)
