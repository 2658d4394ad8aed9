"""Operations that multiply no matrices, by others of their family: what these took at the bytes that they moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._operation import OperationWork
    from dooly.predict._sources import Source

    Floats = npt.NDArray[np.float64]
    Curve = tuple[Floats, Floats]
    """Bytes moved, growing, and latencies in nanoseconds, shape (num_points,) each."""

_ALONE_ERROR = 0.2
"""Relative error where one member of a family tells of all: about the median over the families of several of the RTX PRO 6000."""


def by_bytes(curve: Curve, asked: Floats) -> Floats:
    """Return latencies between measured ones, by logarithms.

    Below the smallest size latency counts alone; above the largest, bandwidth does.

    Args:
        curve: What was measured.
        asked: Bytes moved, shape (num_asked,).
    """
    size_bytes, latency_ns = curve
    logs = np.interp(np.log(asked), np.log(size_bytes), np.log(latency_ns))
    return np.asarray(np.exp(logs) * np.maximum(asked / size_bytes[-1], 1))


@dataclass(frozen=True, slots=True)
class FamilyCurve:
    """An operation by the members of its family that were measured: the geometric mean of what they took at its bytes."""

    members: tuple[Curve, ...]
    """What was measured of each."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over the members, each predicted by the others."""
        if len(self.members) == 1:
            return _ALONE_ERROR
        return float(np.median(np.concatenate([self._left_out_errors(place) for place in range(len(self.members))])))

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        _, traffic = work.cost(batches)
        return self.at(traffic)

    def at(self, traffic: Floats) -> Floats:
        """Return the latency at so many bytes moved, in nanoseconds, shape (num_points,)."""
        logs = [np.log(by_bytes(member, traffic)) for member in self.members]
        return np.asarray(np.exp(np.mean(logs, axis=0)))

    def _left_out_errors(self, place: int) -> Floats:
        traffic, latency_ns = self.members[place]
        others = FamilyCurve(self.members[:place] + self.members[place + 1 :])
        return np.asarray(np.abs(others.at(traffic) / latency_ns - 1))
