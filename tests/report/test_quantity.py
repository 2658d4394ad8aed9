from __future__ import annotations

import pytest

from dooly.report import human


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (1234, "1.23 kB"),
        (33_000_000, "33 MB"),
        (999_999, "1 MB"),
        (2.1e9, "2.1 GB"),
        (1.5e15, "1.5 PB"),
        (1.234567e19, "12,346 PB"),
    ],
)
def test_three_digits_and_a_prefix(value: float, text: str) -> None:
    """A quantity has three digits and a decimal prefix; one that rounds up to a thousand takes the next."""
    assert human(value, "B") == text
