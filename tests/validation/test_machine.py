"""What the machine did beside real runs, against what it did beside a profile's measurements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dbstore import JsonObject, Record
from dooly.batch import Batch
from dooly.latency import LinearLatency
from dooly.validation import MachineState
from dooly.validation._machine import SlowedDevice, calm_calibration_ns


def record(tokens: int, facts: dict[str, Any]) -> Record:
    """Return a record of a step."""
    return Record("f" * 64, "e" * 64, JsonObject({"num_tokens": tokens}), np.array([1000]), facts)


def test_a_slower_machine_is_told_by_both_pieces_of_work() -> None:
    """Each against what it took in the profile; nothing where either was not noted."""
    state = MachineState(0.0, (1.5e6, 2e6))
    assert state.slowdown((1e6, 4e6)) == pytest.approx((0.5, -0.5))
    assert state.slowdown(None) is None
    assert MachineState(0.0).slowdown((1e6, 4e6)) is None


def test_a_slower_machine_takes_as_much_longer_over_each_step() -> None:
    """Steps and runs of decodes take so many times as long, a nanosecond at least; the host is the predictor's own."""
    formula, batch = LinearLatency(1000, per_token_ns=10), Batch((1, 1), (5, 9))
    slowed, contexts = SlowedDevice(formula, 1.5), np.array([5, 9])
    assert slowed.step_ns(batch) == round(1.5 * formula.step_ns(batch))
    assert slowed.decode_run_ns(contexts, 3).tolist() == [slowed.step_ns(batch)] * 3
    assert SlowedDevice(formula, 1e-9).step_ns(batch) == 1
    assert slowed.host is formula.host
    assert slowed.power_cap is None


def test_what_disturbed_a_profile_is_not_its_speed() -> None:
    """Medians are over records that nothing disturbed and that say what the pieces of work took."""
    calm = [record(number, {"calibration_ns": [1e6 * number, 2e6], "spoiled": False}) for number in (1, 2, 3)]
    disturbed = [record(number, {"calibration_ns": [9e9, 9e9], "spoiled": True}) for number in (4, 5, 6, 7)]
    earlier = [record(8, {})]
    assert calm_calibration_ns([*earlier, *disturbed, *calm]) == (2e6, 2e6)
    assert calm_calibration_ns([*earlier, *disturbed]) is None
