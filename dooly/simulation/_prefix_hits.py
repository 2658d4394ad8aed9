"""How much of a request all groups of a KV cache still hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._cache_groups import Blocks, CacheGroup


def find_common(
    kinds: Sequence[Sequence[CacheGroup]], request: int, num_tokens: int, block_size: int
) -> tuple[dict[CacheGroup, Blocks], int, int]:
    """Find the longest beginning of a request, up to so many tokens, from which all groups can resume.

    Each kind in turn lowers what those before it found, until they agree.

    Args:
        kinds: Groups that keep the same tokens together, those that keep all first.
        request: Its position in the workload.
        num_tokens: Tokens to look for at most.
        block_size: Tokens in a block.

    Returns:
        The blocks of each group, how many tokens they stand for, and the most tokens that any kind found.
    """
    hits: dict[CacheGroup, Blocks] = {}
    length, longest, num_full = num_tokens, 0, 0
    one_turn = len(kinds) == 1 or (len(kinds) == 2 and not kinds[0][0].drops_blocks)  # noqa: PLR2004
    while True:
        agreed = length
        for peers in kinds:
            keeps_all = not peers[0].drops_blocks
            if keeps_all and peers[0] in hits:
                agreed = min(agreed, num_full)
                continue
            found, agreed = peers[0].find(peers, request, agreed)
            hits.update(zip(peers, found, strict=True))
            longest = max(longest, agreed)
            if keeps_all:
                num_full = agreed
        is_agreed, length = agreed >= length, min(agreed, length)
        if is_agreed or one_turn:
            break
    for group, blocks in hits.items():
        if not group.drops_blocks:
            del blocks[-(-length // block_size) :]
    return hits, length, longest
