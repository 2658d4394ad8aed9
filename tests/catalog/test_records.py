"""What records say of a measurement."""

from __future__ import annotations

import numpy as np

from dbstore import Record
from dooly.catalog import count_disturbed, medians, pass_medians


def test_a_point_is_disturbed_where_no_pass_was_calm() -> None:
    """One calm pass of three tells a point's latency; without one the point counts as disturbed."""
    passes = {16: (True, False, True), 32: (True, True), 64: (False,)}
    records = [
        Record("a0", "e0", {"d0": size}, np.array([100 + place]), {"spoiled": spoiled})
        for size, found in passes.items()
        for place, spoiled in enumerate(found)
    ]
    assert count_disturbed(records) == (1, 3)
    assert count_disturbed([]) == (0, 0)


def test_what_each_pass_found_stands_in_its_column() -> None:
    """A pass that was disturbed at a point, or never came to it, has none there; one that came twice is two."""
    found = [(16, 0, 100, False), (16, 1, 120, True), (16, 2, 140, False), (32, 2, 300, False), (32, 2, 310, False)]
    records = [
        Record("a0", "e0", {"d0": size}, np.array([ns]), {"pass": number, "spoiled": spoiled})
        for size, number, ns, spoiled in found
    ]
    np.testing.assert_array_equal(pass_medians(records), [[100, 140, np.nan], [np.nan, 300, 310]])
    points, latency_ns = medians(records)
    assert [dict(point) for point in points] == [{"d0": 16}, {"d0": 32}]
    np.testing.assert_array_equal(latency_ns, [120, 305])


def test_what_tells_no_pass_is_in_none_of_those_that_are_told() -> None:
    """A record of another tool stands in a column before the first pass."""
    records = [Record("a0", "e0", {"d0": 16}, np.array([ns]), facts) for ns, facts in ((100, {"pass": 0}), (200, {}))]
    np.testing.assert_array_equal(pass_medians(records), [[200, 100]])
