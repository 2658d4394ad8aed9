"""What places cost, learnt from those that were run."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.measure._place_costs import PlaceCosts


def test_a_constant_and_a_part_in_proportion_are_learnt() -> None:
    """Three places of a tenth of a second and a millisecond a token tell what a fourth costs."""
    tokens = np.array([1.0, 64.0, 512.0, 4096.0])
    costs = PlaceCosts(tokens[:, None])
    before = costs.at(3)
    for place in (0, 1, 2):
        costs.told(place, 0.1 + 1e-3 * tokens[place])
    assert costs.at(3) == pytest.approx(0.1 + 4.096, rel=1e-3)
    assert costs.at(3) != before


def test_no_place_is_taken_for_free() -> None:
    """However the fit turns out, a place costs half of the cheapest that was run at least."""
    costs = PlaceCosts(np.array([[1.0], [1000.0]]))
    costs.told(1, 2.0)
    assert costs.at(0) >= 1.0
