"""What NVML tells of an NVIDIA GPU: its clocks, its temperature, what slows it down, its limits and its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dooly.errors import MeasurementError, pip_install

if TYPE_CHECKING:
    import torch

_SLOWDOWNS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""Bits of NVML's `nvmlClocksEventReasons` that mean less than the clocks set; idling and the user's own settings do not."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Clocks and temperature of a GPU at one moment."""

    sm_mhz: int
    """Clock of the multiprocessors, in MHz."""
    memory_mhz: int
    """Clock of the memory, in MHz."""
    temperature_c: int
    """Temperature of the chip, in degrees Celsius."""
    throttling: tuple[str, ...]
    """What holds the clocks down, if anything."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML knows it."""

    handle: Any
    """NVML's device handle."""

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """Return the GPU behind a CUDA device of torch, whatever `CUDA_VISIBLE_DEVICES` says."""
        import torch

        nvml = _nvml()
        return cls(nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}"))

    @property
    def name(self) -> str:
        """Name of the device."""
        return str(_nvml().nvmlDeviceGetName(self.handle))

    @property
    def driver(self) -> str:
        """Version of the driver."""
        return str(_nvml().nvmlSystemGetDriverVersion())

    @property
    def limits(self) -> str:
        """The highest clocks and the power that the GPU may use, as text."""
        nvml = _nvml()
        sm, memory = (nvml.nvmlDeviceGetMaxClockInfo(self.handle, k) for k in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM))
        watts = nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) // 1000
        return f"SM up to {sm} MHz, memory up to {memory} MHz, up to {watts} W"

    def clocks(self) -> Clocks:
        """Return clocks, temperature and slowdowns now."""
        nvml = _nvml()
        return Clocks(
            int(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM)),
            int(nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM)),
            int(nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU)),
            slowdowns(int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle))),
        )


def slowdowns(reasons: int) -> tuple[str, ...]:
    """Return what a bit field of NVML's clock event reasons says holds the clocks down."""
    return tuple(name for bit, name in _SLOWDOWNS.items() if reasons & bit)


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine, without torch; none where NVML finds none."""
    try:
        nvml = _nvml()
    except MeasurementError:
        return ()
    return tuple(Gpu(nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount()))


def _nvml() -> Any:  # noqa: ANN401 - a module
    """Return NVML's bindings, ready for use; starting it again is cheap and allowed."""
    try:
        import pynvml
    except ModuleNotFoundError as error:
        raise MeasurementError(f"NVML: pynvml is not installed; install it with {pip_install('cuda')}") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeasurementError(f"NVML: {error}; check that `nvidia-smi` lists the GPU") from error
    return pynvml
