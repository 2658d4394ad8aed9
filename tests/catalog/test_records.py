"""What records say of a measurement."""

from __future__ import annotations

import numpy as np

from dbstore import Record
from dooly.catalog import count_disturbed


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
