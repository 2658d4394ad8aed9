"""What is priced at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dooly.adapters._pieces import in_pieces

SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20)


@given(SHAPES, st.integers(1, 60))
def test_pieces_are_all_items_and_no_larger_than_said(shapes: list[tuple[int, int]], most: int) -> None:
    """Each has the rows of its items at the width of the widest; an item that is larger has a piece of its own."""
    pieces = [list(piece) for piece in in_pieces(shapes, lambda shape: shape, most)]
    assert [item for piece in pieces for item in piece] == shapes
    assert all(pieces)
    assert all(len(piece) == 1 or sum(r for r, _ in piece) * max(w for _, w in piece) <= most for piece in pieces)
