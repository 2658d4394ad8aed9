"""GPUs that a trace can be made for."""

from __future__ import annotations

import pytest

from dooly.engines._targets import TARGETS, device_target, find_target
from dooly.errors import InvalidInputError
from dooly.predict import listed_hardware


def test_an_unknown_gpu_is_refused() -> None:
    """The message lists those that are known."""
    with pytest.raises(
        InvalidInputError, match=r"^--hardware: 'h9000' is no GPU that a trace can be made for; choose one of a100"
    ):
        find_target("h9000")
    assert find_target("H200") is TARGETS["h200"]


def test_targets_are_the_devices_that_ship() -> None:
    """Where measurements ship for a device, a trace for it goes by the same name, and takes it for the same device."""
    for hardware in listed_hardware():
        target = TARGETS[hardware.name]
        assert (target.device, target.num_sms) == (hardware.device, hardware.num_sms)
        assert target.memory_bytes == pytest.approx(hardware.memory_bytes, rel=0.01)


def test_a_device_is_known_by_its_drivers_name() -> None:
    """Names as drivers report them find the GPUs that traces are made for, and no others."""
    assert [device_target(target.device) for target in TARGETS.values()] == [*TARGETS.values()]
    assert device_target("AMD EPYC") is None
