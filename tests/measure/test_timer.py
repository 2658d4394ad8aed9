from __future__ import annotations

import time

import pytest

from dooly.errors import MeasurementError
from dooly.measure._timer import timer_for


def test_the_cpu_timer_times_one_call() -> None:
    """A call runs once, and takes at least as long as it sleeps."""
    calls = []

    def call() -> None:
        calls.append(1)
        time.sleep(0.01)

    assert timer_for("cpu").time_ns(call) >= 10_000_000
    assert calls == [1]


def test_an_unknown_device_is_refused_in_one_line() -> None:
    """The error names the device and what can be timed."""
    with pytest.raises(MeasurementError, match="device 'tpu': only 'cpu' can be timed yet") as caught:
        timer_for("tpu")
    assert "\n" not in str(caught.value)
