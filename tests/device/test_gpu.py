from __future__ import annotations

import pytest

from dooly.device import slowdowns


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x2, ()),
        (0x4, ("power cap",)),
        (0x68, ("hardware slowdown", "software thermal", "hardware thermal")),
    ],
)
def test_slowdowns_are_read_from_the_bits(reasons: int, expected: tuple[str, ...]) -> None:
    """Idling and clocks that the user set are no slowdown; caps and heat are."""
    assert slowdowns(reasons) == expected
