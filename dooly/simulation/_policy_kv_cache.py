"""A KV cache by counts in which a policy makes room when a prompt has been computed: what is kept of it lies in fewer blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._counted_kv_cache import CountedKVCache

if TYPE_CHECKING:
    from dooly.kv_policy import KVPolicy
    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig


class PolicyKVCache(CountedKVCache):
    """How many blocks each request holds, of whose prompts some tokens may be dropped.

    Where all heads keep as many tokens, what is kept is moved together into whole blocks. Where they do not, each head has pages
    of its own, of as many tokens as a block, the last of which is half full in the mean: blocks are as many as these pages make.
    """

    def __init__(self, num_requests: int, config: SchedulerConfig, policy: KVPolicy) -> None:
        """Create a cache with all blocks free; nothing in them can be found again."""
        super().__init__(num_requests, config.num_kv_blocks, config.block_size, enable_prefix_caching=False)
        self._has_pages = not policy.is_even
        self._num_dropped = np.zeros(num_requests, np.int64)
        """Tokens of each request that no block holds, the mean over heads."""

    def _num_filled(self, requests: Counts, num_tokens: Counts) -> Counts:
        """Return how many blocks so many tokens of requests fill, less those that are dropped."""
        return np.asarray(-(-self.num_half_tokens(requests, num_tokens) // (2 * self._block_size)))

    def num_half_tokens(self, requests: Counts, num_tokens: Counts) -> Counts:
        """Return twice what blocks have to hold of so many tokens of requests, half pages included, of shape (num_reqs,) all."""
        dropped = self._num_dropped[requests]
        half_pages = (self._block_size - 1) * (dropped > 0) if self._has_pages else 0
        return np.asarray(2 * (num_tokens - dropped) + half_pages)

    def drop(self, requests: Counts, num_dropped: Counts, num_tokens: Counts) -> None:
        """Free the blocks that requests of so many tokens need no more without so many; all arrays have shape (num_reqs,)."""
        self._num_dropped[requests] = num_dropped
        held = self._num_held[requests]
        kept = np.minimum(held, self._num_filled(requests, num_tokens))
        self._num_held[requests] = kept
        self._num_free += int((held - kept).sum())

    def release(self, requests: Counts, num_final: Counts) -> None:
        """Free all blocks of these requests, one after another; see `KVCache`."""
        super().release(requests, num_final)
        self._num_dropped[requests] = 0
