"""Operations that nothing like them was measured of, by the bytes that they move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._sources import ESTIMATE_ERROR

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._hardware import Hardware
    from dooly.predict._operation import OperationWork
    from dooly.predict._sources import Source

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Estimate:
    """What estimates of a device's operations have in common."""

    hardware: Hardware
    """The device."""
    source: Source = "estimated"
    """Where the latencies are from."""
    relative_error: float = ESTIMATE_ERROR
    """What an estimate is taken to be off by."""


@dataclass(frozen=True, slots=True)
class Roofline(_Estimate):
    """An operation by the device's roofline (Williams et al., CACM 2009): how what was measured of it grows beyond."""

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return self.hardware.roofline_ns(*work.cost(batches))


@dataclass(frozen=True, slots=True)
class MovedBytes(_Estimate):
    """An operation that computes little, by the bytes that it moves."""

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        _, traffic = work.cost(batches)
        return np.asarray(self.hardware.launch_ns + 1e9 * traffic / self.hardware.moved_bytes_per_s)
