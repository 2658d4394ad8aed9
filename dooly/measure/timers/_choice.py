"""Which timer a device gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.errors import MeasurementError
from dooly.measure.timers._timer import CpuTimer

if TYPE_CHECKING:
    import torch

    from dooly.measure.timers._timer import Timer


def timer_for(device: torch.device) -> Timer:
    """Return the timer for a device.

    Raises:
        MeasurementError: Dooly cannot time that kind of device, or torch cannot reach it.
    """
    if device.type == "cpu":
        return CpuTimer()
    if device.type == "cuda":
        from dooly.measure.timers._cuda_stream import CudaStream
        from dooly.measure.timers._cuda_timer import CudaTimer

        return CudaTimer(CudaStream(device))
    raise MeasurementError(f"device {device.type!r}: only 'cpu' and 'cuda' can be timed; run the engine on one of them")
