"""The paged KV cache as the scheduler sees it: who holds how many blocks, and how many are free.

Without prefix caching all blocks are alike, and a request holds exactly the blocks that its computed tokens fill: counts suffice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt


class KVCache:
    """The blocks of one KV cache in which every layer has full attention. Requests go by their positions in the workload."""

    def __init__(self, num_requests: int, num_blocks: int, block_size: int) -> None:
        """Create a cache with all blocks free.

        Args:
            num_requests: Requests of the workload.
            num_blocks: Blocks in the cache. The engine keeps one of them, the null block, to itself.
            block_size: Tokens in a block.
        """
        self.capacity = num_blocks - 1
        """Blocks that requests can hold."""
        self._num_free = self.capacity
        self._num_held = np.zeros(num_requests, np.int64)
        self._block_size = block_size

    def num_blocks_for(self, num_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many blocks each request's tokens fill; both arrays have shape (num_reqs,)."""
        return -(-num_tokens // self._block_size)

    def reserve(self, request: int, num_tokens: int, num_room: int, num_spare: int) -> bool:
        """Give a request that holds nothing blocks for its first tokens, if there is room.

        Args:
            request: Its position in the workload.
            num_tokens: Tokens to hold blocks for.
            num_room: Tokens that must have room for it to get any, at least `num_tokens`.
            num_spare: Blocks that must stay free beside these.

        Returns:
            Whether it got them.
        """
        if -(-num_room // self._block_size) + num_spare > self._num_free:
            return False
        self._num_held[request] = num_blocks = -(-num_tokens // self._block_size)
        self._num_free -= num_blocks
        return True

    def extend(self, requests: npt.NDArray[np.int64], num_tokens: npt.NDArray[np.int64]) -> int:
        """Give requests blocks for so many tokens in all, in order, while blocks last; both arrays have shape (num_reqs,).

        Returns:
            How many of the requests have their blocks.
        """
        held = self._num_held[requests]
        needed = np.maximum(self.num_blocks_for(num_tokens), held)
        lacking = needed - held
        num_lacking = int(lacking.sum())
        num_served = requests.size
        if num_lacking > self._num_free:
            ends = np.cumsum(lacking)
            num_served = int(np.searchsorted(ends, self._num_free, side="right"))
            num_lacking = int(lacking[:num_served].sum())
        self._num_free -= num_lacking
        self._num_held[requests[:num_served]] = needed[:num_served]
        return num_served

    def release(self, requests: npt.NDArray[np.int64]) -> None:
        """Free all blocks of these requests."""
        self._num_free += int(self._num_held[requests].sum())
        self._num_held[requests] = 0

    def steps_within(self, num_tokens: npt.NDArray[np.int64], limit: int) -> int:
        """Return how many decode steps the free blocks last.

        Args:
            num_tokens: Tokens that each request's blocks hold already, shape (num_reqs,). Each grows by one a step.
            limit: Largest answer of interest.

        Returns:
            A number of steps from 0 to `limit`.
        """
        affordable = int(self.num_blocks_for(num_tokens).sum()) + self._num_free
        if int(self.num_blocks_for(num_tokens + limit).sum()) <= affordable:
            return limit
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            if int(self.num_blocks_for(num_tokens + middle).sum()) <= affordable:
                low = middle
            else:
                high = middle
        return low
