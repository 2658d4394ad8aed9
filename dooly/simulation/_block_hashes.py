"""What stands in for the hash of a block's tokens: no tokens are simulated, so the workload says which are equal.

A block's hash covers all tokens up to its end. Within the part of a prompt that others may share it is the chain of prefix ids;
behind that, the request's conversation, whose turns begin alike, or the request itself: no other has its tokens, and it finds its
own again when it resumes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._block_pool import BlockHash
    from dooly.simulation._workload import Request

_MOST_TOKENS = 1 << 40
"""More than any request has, so that one integer holds a chain or a request, and a length."""


class BlockHashes:
    """The hashes of a workload's blocks. Requests go by their positions."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Number the chains of prefix ids that prompts begin with."""
        chains: dict[tuple[int, int, int], int] = {}
        self._chains: list[tuple[int, ...]] = []
        self._sizes = [request.prefix_block_size for request in requests]
        self._num_shared: list[int] = []
        conversations: dict[int, int] = {}
        self._owners: list[int] = []
        """Whose tokens lie behind the shared ones: a request's or, numbered behind all of these, a conversation's."""
        for position, request in enumerate(requests):
            turn = request.turn
            own = None if turn is None else conversations.setdefault(turn.conversation, len(requests) + len(conversations))
            self._owners.append(position if own is None else own)
            size, chain, numbers = request.prefix_block_size, -1, []
            for prefix_id in request.prefix_ids:
                chain = chains.setdefault((chain, size, prefix_id), len(chains))
                numbers.append(chain)
            self._chains.append(tuple(numbers))
            self._num_shared.append(min(request.num_prompt_tokens, size * len(numbers)))

    def chain(self, request: int) -> tuple[int, ...]:
        """Return numbers of the beginnings of this request's prompt, by growing length: prompts share those that are equal.

        The last is its own or its conversation's.
        """
        return (*self._chains[request], ~self._owners[request])

    def of(self, request: int, end: int) -> BlockHash:
        """Return the hash of the block that ends with this request's token number `end`."""
        if end <= self._num_shared[request]:
            return self._chains[request][(end - 1) // self._sizes[request]] * _MOST_TOKENS + end
        return ~(self._owners[request] * _MOST_TOKENS + end)
