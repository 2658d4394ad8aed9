"""A KV cache by counts: every layer has full attention, and no two requests share tokens.

Blocks are alike then but for whose tokens they hold, and only a request that was preempted looks for its own again. So it takes
counts, and the order in which requests let go of theirs: free blocks lose what they hold the least recently used request first,
and of that the last tokens first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._kv_cache import KVCache, last_affordable

if TYPE_CHECKING:
    from dooly.simulation._kv_cache import Counts


class CountedKVCache(KVCache):
    """How many blocks each request holds, and how many of its former ones are not overwritten."""

    def __init__(self, num_requests: int, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        """Create a cache with all blocks free.

        Args:
            num_requests: Requests of the workload.
            num_blocks: Blocks in the cache, its null block included.
            block_size: Tokens in a block.
            enable_prefix_caching: Whether what freed blocks hold can be found again.
        """
        super().__init__(num_blocks)
        self._block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._num_free = self.capacity
        self._num_held = np.zeros(num_requests, np.int64)
        self._kept: OrderedDict[int, int] = OrderedDict()
        """Free blocks that hold a request's first tokens, by request, the least recently used first."""
        self._num_kept = 0
        """How many these are, of `_num_free`."""

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return self._num_free

    def num_blocks_for(self, num_tokens: Counts) -> Counts:
        """Return how many blocks so many tokens fill; see `KVCache`."""
        return -(-num_tokens // self._block_size)

    def look_up(self, request: int, num_tokens: int) -> int:
        """Return how many of a preempted request's first tokens are left; see `KVCache`."""
        return min(self._kept.get(request, 0), (num_tokens - 1) // self._block_size) * self._block_size

    def reserve(self, request: int, num_tokens: int, num_room: int, num_spare: int, *, is_loaded: bool = False) -> bool:
        """Give a request blocks for its first tokens, what is left of them first; see `KVCache`."""
        del is_loaded
        # What is found takes free blocks too: nobody else holds them.
        if -(-num_room // self._block_size) + num_spare > self._num_free:
            return False
        self._num_held[request] = num_blocks = -(-num_tokens // self._block_size)
        self._num_kept -= self._kept.pop(request, 0)
        self._take(num_blocks)
        return True

    def num_lacking(self, requests: Counts, num_tokens: Counts) -> int:
        """Return how many blocks requests lack to hold so many tokens; see `KVCache`."""
        return int(np.maximum(self._num_filled(requests, num_tokens) - self._num_held[requests], 0).sum())

    def _num_filled(self, requests: Counts, num_tokens: Counts) -> Counts:  # noqa: ARG002 - for those that do not keep all
        """Return how many blocks so many tokens of requests fill, of shape (num_reqs,) all."""
        return -(-num_tokens // self._block_size)

    def _take(self, number: int) -> None:
        """Take so many free blocks, those that hold nothing first."""
        self._num_free -= number
        while self._num_kept > self._num_free:
            request, num_kept = next(iter(self._kept.items()))
            num_lost = min(num_kept, self._num_kept - self._num_free)
            self._num_kept -= num_lost
            if num_lost == num_kept:
                del self._kept[request]
            else:
                self._kept[request] = num_kept - num_lost

    def extend(self, requests: Counts, num_tokens: Counts) -> int:
        """Give requests blocks for so many tokens in all, in order, while blocks last; see `KVCache`."""
        held = self._num_held[requests]
        needed = self._num_filled(requests, num_tokens)
        lacking = needed - held
        num_lacking = int(lacking.sum())
        if num_lacking <= self._num_free:
            if num_lacking:
                self._num_held[requests] = needed
                self._take(num_lacking)
            return requests.size
        num_served = int(np.searchsorted(np.cumsum(lacking), self._num_free, side="right"))
        self._num_held[requests[:num_served]] = needed[:num_served]
        self._take(int(lacking[:num_served].sum()))
        return num_served

    def extend_steps(self, requests: Counts, num_tokens: Counts, num_steps: int) -> None:
        """Give requests the blocks of so many more decode steps; see `KVCache`."""
        self.extend(requests, num_tokens + num_steps)

    def steps_within(self, requests: Counts, num_tokens: Counts, limit: int) -> int:
        """Return how many decode steps the free blocks last; see `KVCache`."""
        affordable = int(self._num_held[requests].sum()) + self._num_free
        return last_affordable(lambda steps: int(self._num_filled(requests, num_tokens + steps).sum()), affordable, limit)

    def release(self, requests: Counts, num_final: Counts) -> None:
        """Free all blocks of these requests, one after another; see `KVCache`."""
        held = self._num_held[requests]
        self._num_held[requests] = 0
        self._num_free += int(held.sum())
        if self._enable_prefix_caching:
            for request, num_kept in zip(
                requests.tolist(), np.minimum(held, num_final // self._block_size).tolist(), strict=True
            ):
                if num_kept:
                    self._kept[request] = num_kept
                    self._num_kept += num_kept
