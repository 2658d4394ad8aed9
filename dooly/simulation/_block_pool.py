"""The pool of KV blocks that all groups share: which are free, and in which order they lose what they hold.

Blocks without a hash hold nothing that could be found again, so how many of them are free is all there is to know. Those with a
hash are found by it while they are held or free, and are reused last of all, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BlockHash = int
"""Identity of a block's tokens together with all before them."""
Hashed = dict[BlockHash, "list[Block]"]
"""One group's blocks by hash, the first to get it first: requests that compute equal tokens side by side hold one each."""


class Block:
    """One block that was handed out at least once."""

    __slots__ = ("block_hash", "hashed", "num_users")

    def __init__(self) -> None:
        """Create a block that one request holds."""
        self.num_users = 1
        self.block_hash: BlockHash | None = None
        self.hashed: Hashed | None = None
        """Where it can be found, if anywhere."""


class BlockPool:
    """The blocks of a KV cache. `None` among blocks is the null block, which stands for what a group need not keep."""

    def __init__(self, num_blocks: int) -> None:
        """Create a pool of so many free blocks without a hash."""
        self._num_blank = num_blocks
        self._evictable: OrderedDict[Block, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """How many blocks can be taken."""
        return self._num_blank + len(self._evictable)

    def take(self, number: int) -> list[Block]:
        """Take free blocks, those without a hash first, then the least recently used, which lose theirs."""
        num_blank = min(number, self._num_blank)
        self._num_blank -= num_blank
        taken = [Block() for _ in range(num_blank)]
        for _ in range(number - num_blank):
            block, _none = self._evictable.popitem(last=False)
            self._forget(block)
            block.num_users = 1
            taken.append(block)
        return taken

    @staticmethod
    def _forget(block: Block) -> None:
        alike = block.hashed[block.block_hash]  # type: ignore[index]  # evictable blocks have both
        alike.remove(block)
        if not alike:
            del block.hashed[block.block_hash]  # type: ignore[union-attr,arg-type]
        block.block_hash = block.hashed = None

    def touch(self, blocks: Iterable[Block | None]) -> None:
        """Have one more request hold these blocks."""
        for block in blocks:
            if block is not None:
                if not block.num_users:
                    del self._evictable[block]
                block.num_users += 1

    def release(self, blocks: Iterable[Block | None]) -> None:
        """Have one request less hold these blocks; of those that get free, the first are reused first."""
        for block in blocks:
            if block is not None:
                block.num_users -= 1
                if not block.num_users:
                    if block.block_hash is None:
                        self._num_blank += 1
                    else:
                        self._evictable[block] = None


def num_evictable(blocks: Sequence[Block | None]) -> int:
    """Return how many of these blocks are free, so that holding them takes them from the pool."""
    return sum(block is not None and not block.num_users for block in blocks)


def enter(hashed: Hashed, block: Block, block_hash: BlockHash) -> None:
    """Let a block be found by its hash."""
    if block.block_hash is None:
        block.block_hash, block.hashed = block_hash, hashed
        hashed.setdefault(block_hash, []).append(block)
