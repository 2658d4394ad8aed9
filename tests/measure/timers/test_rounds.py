from __future__ import annotations

import pytest

from dooly.measure.timers import is_tight


@pytest.mark.parametrize(
    ("samples", "tight"),
    [([100] * 7, False), ([100] * 8, True), ([100, 101] * 10, True), ([100, 200] * 10, False)],
)
def test_a_median_is_tight_by_its_interval(samples: list[int], tight: bool) -> None:  # noqa: FBT001 - the expected answer
    """Eight samples at least, whose median's interval is within 2 %."""
    assert is_tight(samples) is tight
