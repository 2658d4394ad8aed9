"""Paged KV cache accounting: how many blocks are free, not which.

Without prefix caching all blocks are alike, and a request holds exactly the blocks that its computed tokens fill: counts suffice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class KVBlockPool:
    """The free blocks of one KV cache in which every layer has full attention."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        """Create a pool with all blocks free.

        Args:
            num_blocks: Blocks in the cache. The engine keeps one of them, the null block, to itself.
            block_size: Tokens in a block.
        """
        self.capacity = num_blocks - 1
        self.num_free = self.capacity
        self._block_size = block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks `num_tokens` tokens of one request fill."""
        return -(-num_tokens // self._block_size)

    def blocks_for_each(self, num_tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many blocks each request fills; both arrays have shape (num_reqs,)."""
        return -(-num_tokens // self._block_size)

    def decode_steps_within(self, num_tokens: npt.NDArray[np.int64], limit: int) -> int:
        """Return how many decode steps the free blocks last.

        Args:
            num_tokens: Tokens that each request's blocks hold already, shape (num_reqs,). Each grows by one a step.
            limit: Largest answer of interest.

        Returns:
            A number of steps from 0 to `limit`.
        """
        affordable = int(self.blocks_for_each(num_tokens).sum()) + self.num_free
        if int(self.blocks_for_each(num_tokens + limit).sum()) <= affordable:
            return limit
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            if int(self.blocks_for_each(num_tokens + middle).sum()) <= affordable:
                low = middle
            else:
                high = middle
        return low
