"""Timers, chosen by device: how long one call keeps the device busy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from dooly.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Callable


class Timer(Protocol):
    """Times calls on one kind of device."""

    name: str
    """Name to keep beside the samples."""

    def time_ns(self, call: Callable[[], object]) -> int:
        """Run `call` once, and return how long it took, in nanoseconds."""
        ...


class CpuTimer:
    """Wall clock around the call: CPU operators have finished when they return."""

    name = "perf_counter_ns"

    def time_ns(self, call: Callable[[], object]) -> int:
        """Run `call` once, and return its wall-clock time, in nanoseconds. Its result is freed outside that time."""
        begin = time.perf_counter_ns()
        result = call()
        end = time.perf_counter_ns()
        del result
        return end - begin


def timer_for(device_kind: str) -> Timer:
    """Return the timer for a kind of device.

    Raises:
        MeasurementError: Dooly cannot time that kind yet.
    """
    if device_kind == "cpu":
        return CpuTimer()
    raise MeasurementError(f"device {device_kind!r}: only 'cpu' can be timed yet; run on a machine whose engine uses the CPU")
