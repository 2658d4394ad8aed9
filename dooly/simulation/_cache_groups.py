"""The blocks of one KV cache group: which a request must hold, which it may drop, and which can be found again.

Follows what vLLM (0.32) does for each kind of attention; a recurrent state is `_mamba_group`'s. Prefix caching keeps of windows
only what a prompt can be resumed from (`prefix_cache_retention_interval` 0, its default): where it ends, and where prompts part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.simulation._block_pool import Block, enter, num_evictable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dooly.simulation._block_hashes import BlockHashes
    from dooly.simulation._block_pool import BlockHash, BlockPool, Hashed

    Tokens = npt.NDArray[np.int64]
    Flags = npt.NDArray[np.bool_]

Blocks = list["Block | None"]
"""One request's blocks by position; None is the null block, where it need hold none."""


class CacheGroup:
    """One group of layers with full attention. Requests go by their positions in the workload."""

    drops_blocks = False
    """Whether requests let go of blocks while they run."""

    def __init__(self, pool: BlockPool, hashes: BlockHashes | None, block_size: int, max_num_blocks: int | None = None) -> None:
        """Create a group of which no request holds blocks.

        Args:
            pool: Where its blocks come from.
            hashes: Tells equal blocks; None where no block is found again.
            block_size: Tokens in a block.
            max_num_blocks: Most blocks that a request holds at once; None where only its length says.
        """
        self.hashed: Hashed = {}
        self._pool = pool
        self._hashes = hashes
        self._block_size = block_size
        self._max_num_blocks = max_num_blocks
        self._blocks: dict[int, Blocks] = {}
        self._num_hashed: dict[int, int] = {}

    def num_required(self, num_tokens: int) -> int:
        """Return the most blocks that a request holds at once while it computes so many tokens."""
        num_blocks = -(-num_tokens // self._block_size)
        return num_blocks if self._max_num_blocks is None else min(num_blocks, self._max_num_blocks)

    def num_skipped_tokens(self, _num_tokens: int) -> int:
        """Return how many of the first tokens nothing attends to any more when so many are computed."""
        return 0

    def num_blocks(self, num_tokens: Tokens) -> Tokens:
        """Return how many blocks so many tokens fill, one count a request."""
        return -(-num_tokens // self._block_size)

    def acts_at(self, num_tokens: Tokens, _num_processed: Tokens) -> Flags:
        """Return whether decodes take or drop blocks by which they hold so many tokens, of which so many have run before."""
        is_full: Flags = (num_tokens - 1) % self._block_size == 0
        return is_full

    def num_lacking(  # noqa: PLR0913 -- what a group can ask
        self, request: int, num_tokens: int, hits: Sequence[Block | None], num_cached: int, *, whole: bool, prefill_end: int
    ) -> int:
        """Return how many free blocks a request takes to hold so many tokens, those that it is found to share included.

        Args:
            request: Its position in the workload.
            num_tokens: Tokens that it is to hold.
            hits: Blocks that a new request is found to share.
            num_cached: Tokens that these stand for, or that a running request has computed.
            whole: Whether the question is if it fits at all, a step after another.
            prefill_end: Tokens that it computes as a prompt.
        """
        del prefill_end
        required = self.num_required(num_tokens) if whole else -(-num_tokens // self._block_size)
        num_held = len(self._blocks.get(request, ()))
        if num_held:
            return max(required - num_held, 0)
        num_skipped = self.num_skipped_tokens(num_cached) // self._block_size
        return max(required - max(num_skipped, len(hits)), 0) + num_evictable(hits[max(0, num_skipped) :])

    def adopt(self, request: int, hits: Sequence[Block | None], num_cached: int) -> None:
        """Have a new request hold the blocks that it is found to share."""
        num_skipped = max(0, self.num_skipped_tokens(num_cached) // self._block_size)
        kept = hits[num_skipped:]
        self._pool.touch(kept)
        self._blocks[request] = [*[None] * num_skipped, *kept]
        self._num_hashed[request] = len(self._blocks[request])

    def allocate(self, request: int, num_tokens: int) -> None:
        """Take the blocks that a request lacks to hold so many tokens."""
        blocks = self._blocks.setdefault(request, [])
        num_lacking = -(-num_tokens // self._block_size) - len(blocks)
        if num_lacking > 0:
            blocks += self._pool.take(num_lacking)

    def enter_full(self, request: int, num_tokens: int, boundaries: Sequence[int]) -> None:
        """Let the blocks that so many tokens fill be found again, as far as the group keeps them.

        Args:
            request: Its position in the workload.
            num_tokens: Tokens that are known and computed, or under way.
            boundaries: Tokens behind which others may resume.
        """
        first, last = self._num_hashed.get(request, 0), num_tokens // self._block_size
        if self._hashes is not None and first < last:
            blocks = self._blocks[request]
            for index in self._kept(first, last, boundaries):
                if (block := blocks[index]) is not None:
                    enter(self.hashed, block, self._hash(request, index))
            self._num_hashed[request] = last

    def _kept(self, first: int, last: int, _boundaries: Sequence[int]) -> Iterable[int]:
        """Return which of the full blocks from `first` to `last` are worth finding again."""
        return range(first, last)

    def _hash(self, request: int, index: int) -> BlockHash:
        return self._hashes.of(request, (index + 1) * self._block_size)  # type: ignore[union-attr]  # asked where there are any

    def drop_skipped(self, request: int, num_processed: int) -> None:
        """Let go of the blocks that nothing attends to any more when so many tokens have run."""
        num_skipped = self.num_skipped_tokens(num_processed)
        if num_skipped > 0 and (blocks := self._blocks.get(request)):
            dropped: Blocks = []
            for index in range(min(num_skipped // self._block_size, len(blocks)) - 1, -1, -1):
                if blocks[index] is None:
                    break
                dropped.append(blocks[index])
                blocks[index] = None
            self._pool.release(dropped)

    def release(self, request: int, num_final: int) -> None:
        """Let go of all blocks of a request, the last first; so many of its tokens are known and computed, or under way."""
        if request in self._blocks:
            self.enter_full(request, num_final, ())
        self._num_hashed.pop(request, None)
        self._pool.release(reversed(self._blocks.pop(request, [])))

    def start_step(self) -> None:
        """Begin a step."""

    def find(self, peers: Sequence[CacheGroup], request: int, num_tokens: int) -> tuple[list[Blocks], int]:
        """Find the longest beginning of a request, up to so many tokens, that all groups alike still hold.

        Returns:
            The blocks of each of `peers`, and how many tokens they stand for.
        """
        found: list[Blocks] = [[] for _ in peers]
        for index in range(num_tokens // self._block_size):
            if (alike := self._found(peers, request, index)) is None:
                break
            for blocks, block in zip(found, alike, strict=True):
                blocks.append(block)
        return found, len(found[0]) * self._block_size

    def _found(self, peers: Sequence[CacheGroup], request: int, index: int) -> Blocks | None:
        """Return a block of each group that holds the request's block of this index, or None where one has none."""
        block_hash = self._hash(request, index)
        found: Blocks = []
        for peer in peers:
            if not (alike := peer.hashed.get(block_hash)):
                return None
            found.append(alike[0])
        return found


class SlidingWindowGroup(CacheGroup):
    """One group of layers that attend to the last so many tokens."""

    drops_blocks = True

    def __init__(self, pool: BlockPool, hashes: BlockHashes | None, block_size: int, window: int, max_num_tokens: int) -> None:
        """Create a group; a request may hold up to `max_num_tokens` tokens that the window's first still needs, at once."""
        super().__init__(pool, hashes, block_size, -(-max_num_tokens // block_size) + 1)
        self._window = window
        self._num_needed = -(-(window - 1) // block_size)
        """Blocks in a row that one can resume behind."""

    def num_skipped_tokens(self, num_tokens: int) -> int:
        """Return how many of the first tokens lie before the next one's window."""
        return max(0, num_tokens - self._window + 1)

    def acts_at(self, num_tokens: Tokens, num_processed: Tokens) -> Flags:
        """Return whether decodes take blocks, or drop those that have left the window."""
        has_left: Flags = (num_processed - self._window + 1) % self._block_size == 0
        return has_left | super().acts_at(num_tokens, num_processed)

    def _kept(self, first: int, last: int, boundaries: Sequence[int]) -> Iterable[int]:
        kept: set[int] = set()
        for boundary in boundaries:
            end = boundary // self._block_size
            kept.update(range(max(first, end - self._num_needed), min(last, end)))
        return sorted(kept)

    def find(self, peers: Sequence[CacheGroup], request: int, num_tokens: int) -> tuple[list[Blocks], int]:
        """Find the last window, up to so many tokens, that all groups alike still hold in whole, or the beginning."""
        num_blocks = num_tokens // self._block_size
        found: list[Blocks] = [[None] * num_blocks for _ in peers]
        num_in_row = 0
        for index in range(num_blocks - 1, -1, -1):
            if (alike := self._found(peers, request, index)) is None:
                num_in_row = 0
                continue
            for blocks, block in zip(found, alike, strict=True):
                blocks[index] = block
            num_in_row += 1
            if num_in_row >= self._num_needed:
                num_in_row += index
                break
        for blocks in found:
            del blocks[num_in_row:]
        return found, num_in_row * self._block_size


class ChunkedLocalGroup(CacheGroup):
    """One group of layers that attend within chunks."""

    drops_blocks = True

    def __init__(self, pool: BlockPool, hashes: BlockHashes | None, block_size: int, chunk: int, max_num_tokens: int) -> None:
        """Create a group; a request may hold up to `max_num_tokens` tokens from the start of a chunk, at once."""
        super().__init__(pool, hashes, block_size, -(-max_num_tokens // block_size))
        self._chunk = chunk

    def num_skipped_tokens(self, num_tokens: int) -> int:
        """Return how many of the first tokens lie before the next one's chunk."""
        return num_tokens // self._chunk * self._chunk

    def acts_at(self, num_tokens: Tokens, num_processed: Tokens) -> Flags:
        """Return whether decodes take blocks, or drop those of a chunk that has ended."""
        has_ended: Flags = num_processed % self._chunk == 0
        return has_ended | super().acts_at(num_tokens, num_processed)

    def drop_skipped(self, request: int, num_processed: int) -> None:
        """Let go of the blocks of chunks that have ended; they can be found again."""
        if request in self._blocks:
            self.enter_full(request, self.num_skipped_tokens(num_processed), ())
        super().drop_skipped(request, num_processed)

    def find(self, peers: Sequence[CacheGroup], request: int, num_tokens: int) -> tuple[list[Blocks], int]:
        """Find the longest beginning of the chunk that token number `num_tokens` lies in; chunks before it count as found."""
        first = self.num_skipped_tokens(num_tokens) // self._block_size
        found: list[Blocks] = [[None] * first for _ in peers]
        for index in range(first, num_tokens // self._block_size):
            if (alike := self._found(peers, request, index)) is None:
                break
            for blocks, block in zip(found, alike, strict=True):
                blocks.append(block)
        return found, len(found[0]) * self._block_size
