"""A KV cache of full attention in which requests also hold blocks for drafts, and for what the drafter writes behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._block_kv_cache import BlockKVCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


class SpeculativeKVCache(BlockKVCache):
    """The blocks of a KV cache. What a request has computed may shrink, for drafts that are not accepted; its blocks do not."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig) -> None:
        """Create a cache with all blocks free and nothing in them; `config.speculative` says how tokens are drafted."""
        assert config.speculative is not None
        super().__init__(requests, config)
        (self._group,) = self._groups
        self._speculative = config.speculative
        self._num_held = np.zeros(len(requests), np.int64)

    def _num_blocks(self, num_tokens: Counts) -> Counts:
        """Return how many blocks a step needs that computes so many tokens in all, drafts included."""
        num_slots = np.minimum(num_tokens + self._speculative.num_lookahead_tokens, self._config.max_model_len)
        return -(-num_slots // self._config.block_size)

    def num_blocks_for(self, num_tokens: Counts) -> Counts:
        """Return the most blocks that each request holds at once, drafts behind the last token included; see `KVCache`."""
        return self._num_blocks(num_tokens + self._speculative.num_speculative_tokens)

    def look_up(self, request: int, num_tokens: int) -> int:
        """Find the longest beginning of a request that is held, less a block where drafters need it; see `KVCache`."""
        super().look_up(request, num_tokens)
        if self._speculative.drops_last_block and self._num_hit:
            (hits,) = self._hits
            hits.pop()
            self._num_hit -= self._config.block_size
        return self._num_hit

    def _num_lacking(self, request: int, num_tokens: int, *, whole: bool) -> int:
        """Return how many free blocks a request takes to hold so many tokens; only a step that runs needs room behind them."""
        if not whole:
            num_tokens = min(num_tokens + self._speculative.num_lookahead_tokens, self._config.max_model_len)
        return super()._num_lacking(request, num_tokens, whole=whole)

    def _take(self, request: int, num_tokens: int) -> None:
        num_slots = min(num_tokens + self._speculative.num_lookahead_tokens, self._config.max_model_len)
        self._group.allocate(request, num_slots)
        self._num_held[request] = max(self._num_held[request], -(-num_slots // self._config.block_size))
        self._num_tokens[request] = num_tokens

    def extend(self, requests: Counts, num_tokens: Counts) -> int:
        """Give requests blocks for so many tokens in all, in order, while blocks last; see `KVCache`."""
        is_prompt = self._num_tokens[requests] < self._num_known[requests]
        acts = is_prompt | (self._num_blocks(num_tokens) > self._num_held[requests])
        for place in np.flatnonzero(acts).tolist():
            if not self._extend(int(requests[place]), int(num_tokens[place]), 0):
                return int(place)
        return requests.size

    def _extend(self, request: int, num_tokens: int, num_processed: int) -> bool:
        """Give a request blocks for so many tokens, if blocks last."""
        if self._num_lacking(request, num_tokens, whole=False) > self._pool.num_free:
            return False
        self._allocate(request, num_tokens, num_processed)
        return True

    def release(self, requests: Counts, num_final: Counts) -> None:
        """Free all blocks of these requests, one after another; see `KVCache`."""
        super().release(requests, num_final)
        self._num_held[requests] = 0
