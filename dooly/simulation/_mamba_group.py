"""The blocks of one group of recurrent layers with prefix caching: the state, and states at block ends that one can resume from.

vLLM (0.32) calls it `mamba_cache_mode` "align". A request's list of blocks runs along its tokens as in any group, but only the
last holds the running state; a state that a step has left behind is kept until the next one has read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.simulation._block_pool import enter, num_evictable
from dooly.simulation._cache_groups import CacheGroup

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dooly.simulation._block_hashes import BlockHashes
    from dooly.simulation._block_pool import Block, BlockHash, BlockPool
    from dooly.simulation._cache_groups import Blocks, Flags, Tokens

_NEVER = 1 << 60
"""More blocks than there are."""


class MambaGroup(CacheGroup):
    """One group of recurrent layers whose states are kept where prompts can be resumed."""

    drops_blocks = True

    def __init__(self, pool: BlockPool, hashes: BlockHashes | None, block_size: int, num_checkpoints: int) -> None:
        """Create a group; `num_checkpoints` is 1 where a prefill can leave a state within, 0 where only at its end."""
        super().__init__(pool, hashes, block_size, 2 + num_checkpoints)
        self._has_checkpoints = num_checkpoints > 0
        self._last_state: dict[int, int] = {}
        self._num_dropped: dict[int, int] = {}
        self._checkpoints: set[int] = set()
        self._entered: set[BlockHash] = set()
        """What this step has let be found: its states are not computed yet."""

    def num_skipped_tokens(self, num_tokens: int) -> int:
        """Return how many of the first tokens lie before the last."""
        return num_tokens - 1

    def acts_at(self, num_tokens: Tokens, num_processed: Tokens) -> Flags:
        """Return whether decodes take blocks for their states, or drop those before."""
        has_left: Flags = (num_processed - 1) % self._block_size == 0
        return has_left | super().acts_at(num_tokens, num_processed)

    def checkpoint(self, num_tokens: int) -> int:
        """Return the last block end before so many tokens: a prompt of that length is resumed there."""
        return max(0, (num_tokens - 1) // self._block_size * self._block_size)

    def _leaves_checkpoint(self, start: int, end: int, prefill_end: int, position: int) -> bool:
        """Return whether the step that computes tokens from `start` to `end` leaves the state at `position` behind as it goes."""
        size = self._block_size
        return (
            self._has_checkpoints
            and end >= prefill_end
            and start % size == 0
            and -(-end // size) - 2 > (start - 1) // size
            and start + size <= position < end
        )

    def aligned_end(  # noqa: PLR0913 -- all that a stop depends on
        self, start: int, end: int, *, num_prompt_tokens: int, num_tokens: int, junction: int, most: int
    ) -> int:
        """Return where a step that is to compute tokens from `start` to `end` stops, so that its state can be kept.

        Args:
            start: Tokens computed before.
            end: Tokens that it could compute up to.
            num_prompt_tokens: The prompt's.
            num_tokens: All that are known.
            junction: Where the request parts from others whose state was not kept; 0 for nowhere.
            most: Tokens that one request may compute in a step.
        """
        size = self._block_size
        prefill_end = max(num_prompt_tokens, num_tokens - 1)
        if start >= prefill_end:
            return end
        within = self._leaves_checkpoint(start, end, prefill_end, self.checkpoint(prefill_end))
        if end < prefill_end:
            aligned = end // size * size
            if aligned > start or size <= most:
                end = aligned
        stops = [0 if within else self.checkpoint(num_tokens)]
        if start % size and not within:
            stops.append((start // size + 1) * size)
        if start < junction < end:
            stops.append(start + (junction - start) // size * size)
        return max(start, min((stop for stop in stops if start < stop < end), default=end))

    def num_lacking(  # noqa: PLR0913 -- as in any group
        self, request: int, num_tokens: int, hits: Sequence[Block | None], num_cached: int, *, whole: bool, prefill_end: int
    ) -> int:
        """Return how many free blocks a request takes to hold the state behind so many tokens; see `CacheGroup`.

        A request that would resume from a state of this very step has to wait for the next.
        """
        if hits and hits[-1] is not None and hits[-1].block_hash in self._entered:
            return _NEVER
        blocks = self._blocks.get(request, [])
        num_new = -(-num_tokens // self._block_size) - len(hits) - len(blocks)
        index = -(-num_tokens // self._block_size) - 2
        is_free = not 0 <= index < len(blocks) or blocks[index] is None
        leaves = is_free and self._leaves_checkpoint(num_cached, num_tokens, prefill_end, self.checkpoint(num_tokens))
        if not whole:
            (self._checkpoints.add if leaves else self._checkpoints.discard)(request)
        return min(num_new, 1 + leaves) * (num_new > 0) + num_evictable(hits)

    def allocate(self, request: int, num_tokens: int) -> None:
        """Take the blocks for the state behind so many tokens, and for the one to leave within."""
        blocks = self._blocks.setdefault(request, [])
        num_required, num_before = -(-num_tokens // self._block_size), len(blocks)
        leaves = request in self._checkpoints
        if num_required > num_before or leaves:
            if num_before:
                self._last_state[request] = num_before - 1
            blocks += [None] * (num_required - 1 - leaves - num_before)
            blocks += self._pool.take(max(num_required - len(blocks), 0))

    def enter_full(self, request: int, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Let the states behind `boundaries` be found again, from the next step on."""
        first = self._num_hashed.get(request, 0)
        super().enter_full(request, num_tokens, boundaries)
        blocks, last = self._blocks[request], num_tokens // self._block_size
        # The state behind the prompt counts as new in each step that ends in the block behind it.
        is_behind_prompt = bool(boundaries) and 0 < num_tokens == self.checkpoint(boundaries[0] + 1)
        if is_behind_prompt and request not in self._checkpoints and (state := blocks[last - 1]) is not None:
            enter(self.hashed, state, self._hash(request, last - 1))
            self._entered.add(self._hash(request, last - 1))
        for block in blocks[first:last]:
            if block is not None and block.block_hash is not None:
                self._entered.add(block.block_hash)

    def _kept(self, first: int, last: int, boundaries: Sequence[int]) -> Iterable[int]:
        ends = {boundary // self._block_size - 1 for boundary in boundaries}
        return sorted(index for index in ends if first <= index < last)

    def drop_skipped(self, request: int, num_processed: int) -> None:
        """Let go of the states before the last that has run, and of the one that the last step has read."""
        blocks = self._blocks.get(request, [])
        last = min(self.num_skipped_tokens(num_processed) // self._block_size, len(blocks))
        first = self._num_dropped.get(request, 0)
        if first < last:
            dropped: Blocks = [block for block in reversed(blocks[first:last]) if block is not None]
            blocks[first:last] = [None] * (last - first)
            self._pool.release(dropped)
            self._num_dropped[request] = last
        index = self._last_state.get(request)
        if index is not None and index < -(-num_processed // self._block_size) - 1 and blocks[index] is not None:
            self._pool.release([blocks[index]])
            blocks[index] = None

    def release(self, request: int, num_final: int) -> None:
        """Let go of all blocks of a request."""
        self._last_state.pop(request, None)
        self._num_dropped.pop(request, None)
        self._checkpoints.discard(request)
        super().release(request, num_final)

    def start_step(self) -> None:
        """Begin a step, which can resume from the states of the one before."""
        self._entered.clear()

    def find(self, peers: Sequence[CacheGroup], request: int, num_tokens: int) -> tuple[list[Blocks], int]:
        """Find the last state, up to so many tokens, that all groups alike still hold."""
        for index in range(num_tokens // self._block_size - 1, -1, -1):
            if (alike := self._found(peers, request, index)) is not None:
                return [[*[None] * index, block] for block in alike], (index + 1) * self._block_size
        return [[] for _ in peers], 0
