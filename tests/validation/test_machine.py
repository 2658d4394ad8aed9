"""What the machine did beside real runs, against what it did beside a profile's measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dbstore import JsonObject, Record
from dooly.validation import MachineState
from dooly.validation._machine import calm_products_ns


def record(tokens: int, facts: dict[str, Any]) -> Record:
    """Return a record of a step."""
    return Record("f" * 64, "e" * 64, JsonObject({"num_tokens": tokens}), np.array([1000]), facts)


def test_a_slower_machine_is_told_by_both_pieces_of_work() -> None:
    """Each against what it took in the profile; nothing where either was not noted."""
    state = MachineState(0.0, (1.5e6, 2e6))
    assert state.slowdown((1e6, 4e6)) == pytest.approx((0.5, -0.5))
    assert state.slowdown(None) is None
    assert MachineState(0.0).slowdown((1e6, 4e6)) is None


def test_what_disturbed_a_profile_is_not_its_speed() -> None:
    """Medians are over records that nothing disturbed and that say what the pieces of work took."""
    calm = [record(number, {"products_ns": [1e6 * number, 2e6], "spoiled": False}) for number in (1, 2, 3)]
    disturbed = [record(number, {"products_ns": [9e9, 9e9], "spoiled": True}) for number in (4, 5, 6, 7)]
    earlier = [record(8, {})]
    assert calm_products_ns([*earlier, *disturbed, *calm]) == (2e6, 2e6)
    assert calm_products_ns([*earlier, *disturbed]) is None
