"""A KV cache block by block: groups of several kinds, and blocks that several requests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._block_hashes import BlockHashes
from dooly.simulation._block_pool import BlockPool
from dooly.simulation._kv_cache import KVCache, last_affordable
from dooly.simulation._make_groups import alike, make_group
from dooly.simulation._mamba_group import MambaGroup
from dooly.simulation._prefix_hits import find_common

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._cache_groups import Blocks
    from dooly.simulation._kv_cache import Counts
    from dooly.simulation._scheduler_config import SchedulerConfig
    from dooly.simulation._workload import Request


class BlockKVCache(KVCache):
    """The blocks of a KV cache, each on its own."""

    def __init__(self, requests: Sequence[Request], config: SchedulerConfig) -> None:
        """Create a cache with all blocks free and nothing in them."""
        super().__init__(config.num_kv_blocks)
        self._config = config
        self._pool = BlockPool(self.capacity)
        hashes = BlockHashes(requests) if config.enable_prefix_caching else None
        self._groups = [make_group(self._pool, hashes, group, config) for group in config.kv_cache_groups]
        self._kinds = alike(self._groups, config.kv_cache_groups)
        self._num_prompt_tokens = np.array([request.num_prompt_tokens for request in requests], np.int64)
        self._num_known = self._num_prompt_tokens.copy()
        """Tokens of each request when it was admitted last: it computes them as a prompt."""
        self._num_tokens = np.zeros(len(requests), np.int64)
        """Tokens of each request that it holds blocks for, or has dropped them."""
        self._num_processed = np.zeros(len(requests), np.int64)
        """Those whose step has run."""
        self._num_seen = np.zeros(len(requests), np.int64)
        """Those that had run when the request was last given blocks."""
        self._junctions: dict[int, int] = {}
        self._hits: list[Blocks] = []
        self._num_hit = 0
        self._mamba = next((group for group in self._groups if isinstance(group, MambaGroup)), None)
        self.aligns = self._mamba is not None
        self.recycles = any(group.drops_blocks for group in self._groups)

    @property
    def num_free(self) -> int:
        """Blocks that no request holds."""
        return self._pool.num_free

    def num_blocks_for(self, num_tokens: Counts) -> Counts:
        """Return the most blocks that each request holds at once; see `KVCache`."""
        return np.array([sum(group.num_required(n) for group in self._groups) for n in num_tokens.tolist()], np.int64)

    def start_step(self) -> None:
        """Begin a step."""
        for group in self._groups:
            group.start_step()

    def look_up(self, request: int, num_tokens: int) -> int:
        """Find the longest beginning of a request that every group still holds; see `KVCache`."""
        self._num_known[request] = num_tokens
        self._hits, self._num_hit = [[] for _ in self._groups], 0
        if self._config.enable_prefix_caching:
            found, self._num_hit, longest = find_common(self._kinds, request, num_tokens - 1, self._config.block_size)
            self._hits = [found[group] for group in self._groups]
            self._junctions[request] = longest if longest > self._num_hit else 0
        return self._num_hit

    def reserve(self, request: int, num_tokens: int, num_room: int, num_spare: int, *, is_loaded: bool = False) -> bool:
        """Give the request that was looked up last blocks for its first tokens; see `KVCache`."""
        if num_room > num_tokens and self._num_lacking(request, num_room, whole=True) + num_spare > self._pool.num_free:
            return False
        if self._num_lacking(request, num_tokens, whole=False) + num_spare > self._pool.num_free:
            return False
        if any(self._hits):
            for group, hits in zip(self._groups, self._hits, strict=True):
                group.adopt(request, hits, self._num_hit)
        self._num_processed[request] = self._num_seen[request] = self._num_hit
        if is_loaded:
            self._take(request, num_tokens)
        else:
            self._allocate(request, num_tokens, self._num_hit)
        return True

    def num_lacking(self, requests: Counts, num_tokens: Counts) -> int:
        """Return how many blocks requests lack to hold so many tokens; see `KVCache`."""
        held = self.num_blocks_for(self._num_tokens[requests])
        return int(np.maximum(self.num_blocks_for(num_tokens) - held, 0).sum())

    def finish_load(self, request: int, num_tokens: int) -> None:
        """Let what another engine has filled be found; see `KVCache`."""
        self._num_processed[request] = self._num_seen[request] = num_tokens
        if self._config.enable_prefix_caching:
            self._enter_full(request, num_tokens)

    def _num_lacking(self, request: int, num_tokens: int, *, whole: bool) -> int:
        """Return how many free blocks a new request takes to hold so many tokens."""
        end = self._prefill_end(request)
        return sum(
            group.num_lacking(request, num_tokens, hits, self._num_hit, whole=whole, prefill_end=end)
            for group, hits in zip(self._groups, self._hits, strict=True)
        )

    def _prefill_end(self, request: int) -> int:
        return int(max(self._num_prompt_tokens[request], self._num_known[request] - 1))

    def _allocate(self, request: int, num_tokens: int, num_processed: int) -> None:
        """Take the blocks that a request lacks to grow to so many tokens; of so many before, the steps have run."""
        before, known = self._num_tokens[request], self._num_known[request]
        self._take(request, num_tokens)
        if not self._config.enable_prefix_caching:
            return
        if before < known:
            self._enter_full(request, int(min(num_tokens, known)))
        elif self._mamba is not None:
            # A decode's input is known where the step before has run. Up to the next block's end the prompt's state is there.
            num_final, size = num_tokens - (num_processed < before), self._config.block_size
            if num_final // size == (self._num_prompt_tokens[request] - 1) // size:
                self._enter_full(request, int(num_final))

    def _take(self, request: int, num_tokens: int) -> None:
        for group in self._groups:
            group.allocate(request, num_tokens)
        self._num_tokens[request] = num_tokens

    def _enter_full(self, request: int, num_tokens: int) -> None:
        """Let the blocks that so many tokens fill be found again."""
        if len(self._groups) > 1:
            num_tokens -= num_tokens % self._config.block_size
        boundaries = [int(self._num_prompt_tokens[request]) - 1]
        if junction := self._junctions.get(request):
            boundaries.append(junction)
        for group in self._groups:
            group.enter_full(request, num_tokens, boundaries)

    def extend(self, requests: Counts, num_tokens: Counts) -> int:
        """Give requests blocks for so many tokens in all, in order, while blocks last; see `KVCache`."""
        before, processed = self._num_tokens[requests], self._num_processed[requests]
        acts = (before < self._num_known[requests]) | self._acts_at(num_tokens, processed) | self._is_late(requests, processed)
        if self._mamba is not None:
            acts |= self._is_behind_prompt(requests, num_tokens)
        acts &= num_tokens > before
        for place in np.flatnonzero(acts).tolist():
            if not self._extend(int(requests[place]), int(num_tokens[place]), int(processed[place])):
                self._note(requests[:place], num_tokens[:place], processed[:place])
                return int(place)
        self._note(requests, num_tokens, processed)
        return requests.size

    def _note(self, requests: Counts, num_tokens: Counts, num_processed: Counts) -> None:
        """Note how many tokens requests hold blocks for, and up to where those that have run were looked at."""
        self._num_tokens[requests], self._num_seen[requests] = num_tokens, num_processed

    def _acts_at(self, num_tokens: Counts, num_processed: Counts) -> npt.NDArray[np.bool_]:
        """Return whether decodes take or drop blocks by which they hold so many tokens, of which so many have run before."""
        acts: npt.NDArray[np.bool_] = np.any([peers[0].acts_at(num_tokens, num_processed) for peers in self._kinds], axis=0)
        return acts

    def _is_late(self, requests: Counts, num_processed: Counts) -> npt.NDArray[np.bool_]:
        """Return whether several tokens of requests have run since these were last looked at, as behind a prompt's last chunk."""
        is_late: npt.NDArray[np.bool_] = num_processed - self._num_seen[requests] > 1
        return is_late

    def _is_behind_prompt(self, requests: Counts, num_tokens: Counts) -> npt.NDArray[np.bool_]:
        """Return whether so many tokens end in the block behind the one up to which a prompt's state is kept."""
        size = self._config.block_size
        is_behind: npt.NDArray[np.bool_] = (num_tokens - 1) // size <= (self._num_prompt_tokens[requests] - 1) // size
        return is_behind

    def _extend(self, request: int, num_tokens: int, num_processed: int) -> bool:
        """Give a request blocks for so many tokens, and take those that it needs no more, if blocks last."""
        before, end = int(self._num_tokens[request]), self._prefill_end(request)
        for group in self._groups:
            group.drop_skipped(request, num_processed)
        lacking = (g.num_lacking(request, num_tokens, (), before, whole=False, prefill_end=end) for g in self._groups)
        if sum(lacking) > self._pool.num_free:
            return False
        self._allocate(request, num_tokens, num_processed)
        return True

    def extend_steps(self, requests: Counts, num_tokens: Counts, num_steps: int) -> None:
        """Give requests blocks for so many more decode steps; see `KVCache`."""
        if not self.recycles:
            for request, total in zip(requests.tolist(), (num_tokens + num_steps).tolist(), strict=True):
                for group in self._groups:
                    group.allocate(request, total)
        else:
            num_ahead = int(self._config.async_scheduling)
            totals = num_tokens + np.arange(1, num_steps + 1)[:, None]
            acts = self._acts_at(totals, totals - 1 - num_ahead)
            acts[0] |= self._is_late(requests, num_tokens - num_ahead)
            for step, place in np.argwhere(acts).tolist():
                request, total = int(requests[place]), int(totals[step, place])
                self._num_tokens[request] = total - 1
                self._extend(request, total, total - 1 - num_ahead)
        num_final = num_tokens + num_steps
        self._note(requests, num_final, num_final - 1 - self._config.async_scheduling)

    def steps_within(self, requests: Counts, num_tokens: Counts, limit: int) -> int:
        """Return how many decode steps the free blocks last, whatever gets free meanwhile; see `KVCache`."""
        del requests

        def num_blocks(num_steps: int) -> int:
            return sum(int(group.num_blocks(num_tokens + num_steps).sum()) for group in self._groups)

        return last_affordable(num_blocks, num_blocks(0) + self._pool.num_free, limit)

    def settle(self, requests: Counts, num_tokens: Counts) -> None:
        """Note that so many tokens of requests have run; see `KVCache`."""
        self._num_processed[requests] = num_tokens

    def release(self, requests: Counts, num_final: Counts) -> None:
        """Free all blocks of these requests, one after another; see `KVCache`."""
        for request, final in zip(requests.tolist(), num_final.tolist(), strict=True):
            for group in self._groups:
                group.release(request, final)
        self._num_tokens[requests] = 0

    def aligned(self, request: int, start: int, end: int) -> int:
        """Return where a step stops that could compute tokens from `start` to `end`; see `KVCache`."""
        if self._mamba is None:
            return end
        budget = self._config.token_budget
        return self._mamba.aligned_end(
            start,
            end,
            num_prompt_tokens=int(self._num_prompt_tokens[request]),
            num_tokens=int(self._num_known[request]),
            junction=self._junctions.get(request, 0),
            most=min(budget, self._config.long_prefill_token_threshold or budget),
        )
