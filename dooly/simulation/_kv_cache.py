"""What the scheduler asks of a KV cache: which requests hold blocks, for how many tokens, and what can be found again.

Two caches meet this. `CountedKVCache` counts blocks, which is all it takes where every layer has full attention and no two
prompts share tokens; `BlockKVCache` keeps each block. Both give the same schedule where both apply. Requests go by their
positions in the workload.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Counts = npt.NDArray[np.int64]


class KVCache(ABC):
    """The blocks of one engine's KV cache, and who holds them."""

    recycles: bool = False
    """Whether a block can get free, or be found, while all requests go on."""
    aligns: bool = False
    """Whether steps must stop where a recurrent state can be kept."""

    def __init__(self, num_blocks: int) -> None:
        """Create a cache with all blocks free; the engine keeps one of `num_blocks`, the null block, to itself."""
        self.capacity = num_blocks - 1
        """Blocks that requests can hold."""

    @property
    @abstractmethod
    def num_free(self) -> int:
        """Blocks that no request holds."""

    @abstractmethod
    def num_blocks_for(self, num_tokens: Counts) -> Counts:
        """Return the most blocks that requests hold at once that compute so many tokens; both arrays have shape (num_reqs,)."""

    def start_step(self) -> None:  # noqa: B027 -- few need to know
        """Begin a step."""

    @abstractmethod
    def look_up(self, request: int, num_tokens: int) -> int:
        """Find how many of the first tokens of a request that holds nothing are cached, of so many that are known.

        The last token is never found: its step generates the next.
        """

    @abstractmethod
    def reserve(self, request: int, num_tokens: int, num_room: int, num_spare: int, *, is_loaded: bool = False) -> bool:
        """Give the request that was looked up last blocks for its first tokens, what was found included, if there is room.

        Args:
            request: Its position in the workload.
            num_tokens: Tokens to hold blocks for.
            num_room: Tokens that must have room for it to get any, at least `num_tokens`.
            num_spare: Blocks that must stay free beside these.
            is_loaded: Whether another engine fills them, so that they cannot be found until `finish_load`.

        Returns:
            Whether it got them.
        """

    @abstractmethod
    def num_lacking(self, requests: Counts, num_tokens: Counts) -> int:
        """Return how many blocks requests lack to hold so many tokens; both arrays have shape (num_reqs,)."""

    def finish_load(self, request: int, num_tokens: int) -> None:  # noqa: B027 -- few need to know
        """Note that so many first tokens of a request have come from another engine."""

    @abstractmethod
    def extend(self, requests: Counts, num_tokens: Counts) -> int:
        """Give requests blocks for so many tokens in all, in order, while blocks last; both arrays have shape (num_reqs,).

        Returns:
            How many of the requests have their blocks.
        """

    @abstractmethod
    def steps_within(self, requests: Counts, num_tokens: Counts, limit: int) -> int:
        """Return how many decode steps the free blocks last at least.

        Args:
            requests: All requests that hold blocks, shape (num_reqs,).
            num_tokens: Tokens that they hold blocks for, shape (num_reqs,). Each grows by one a step.
            limit: Largest answer of interest.

        Returns:
            A number of steps from 0 to `limit`.
        """

    @abstractmethod
    def extend_steps(self, requests: Counts, num_tokens: Counts, num_steps: int) -> None:
        """Give requests that hold blocks for so many tokens those of `num_steps` more decode steps, within `steps_within`."""

    def settle(self, requests: Counts, num_tokens: Counts) -> None:  # noqa: B027 -- few need to know
        """Note that the steps have run which computed so many tokens of requests; both arrays have shape (num_reqs,)."""

    @abstractmethod
    def release(self, requests: Counts, num_final: Counts) -> None:
        """Free all blocks of these requests, one after another.

        Args:
            requests: Their positions, shape (num_reqs,).
            num_final: Tokens of each that are known and computed, or under way: the blocks that they fill can be found again.
        """

    def aligned(self, request: int, start: int, end: int) -> int:
        """Return where a step stops that could compute a request's tokens from `start` to `end`; `start` if it must wait."""
        del request, start
        return end


def last_affordable(cost: Callable[[int], int], budget: int, limit: int) -> int:
    """Return the largest number up to `limit` whose cost, which grows with it, is within the budget; 0 is."""
    if cost(limit) <= budget:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if cost(middle) <= budget:
            low = middle
        else:
            high = middle
    return low
