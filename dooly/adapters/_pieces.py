"""What is priced at once: arrays of a batch a row, as wide as the widest, hold so much and no more."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from threading import Event

_MOST_PLACES = 1 << 21
"""Places of requests in the arrays of a piece: 16 MiB each."""
Item = TypeVar("Item")


def in_pieces(
    items: Sequence[Item], shape: Callable[[Item], tuple[int, int]], most: int | None = None, *, given_up: Event | None = None
) -> Iterator[Sequence[Item]]:
    """Yield items in their order, in pieces whose arrays have that many places at most, or hold one item.

    Args:
        items: What is priced.
        shape: Rows that an item takes, and requests in the widest of them.
        most: Places of a piece; without it those of 16 MiB.
        given_up: Set once nobody waits for them any longer.

    Raises:
        CancelledError: Nobody waits for the next piece.
    """
    for piece in _pieces(items, shape, most or _MOST_PLACES):
        if given_up is not None and given_up.is_set():
            raise CancelledError
        yield piece


def _pieces(items: Sequence[Item], shape: Callable[[Item], tuple[int, int]], most: int) -> Iterator[Sequence[Item]]:
    start, rows, width = 0, 0, 0
    for stop, item in enumerate(items):
        own_rows, own_width = shape(item)
        rows, width = rows + own_rows, max(width, own_width)
        if rows * width > most and stop > start:
            yield items[start:stop]
            start, rows, width = stop, own_rows, own_width
    if start < len(items):
        yield items[start:]
