"""Operations that were measured themselves: fitted to their records, or between the points of a table; some points filled up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._family_curve import by_bytes
from dooly.predict._family_features import mixed_inputs
from dooly.predict._sources import ESTIMATE_ERROR

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.predict._family import FamilyRegressor
    from dooly.predict._features import BatchArrays
    from dooly.predict._hardware import Hardware
    from dooly.predict._kinds import AttentionShape
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import OperationLatency, Source

    Floats = npt.NDArray[np.float64]

_FEW = 2


@dataclass(frozen=True, slots=True)
class MeasuredOperation:
    """What the records of an operation say it takes, and what its family says where they are few."""

    regressor: Regressor
    """Fitted to the records, and to what was filled up between them."""
    source: Source = "measured"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error on held-out points."""
        return self.regressor.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return self.regressor.predict_ns(work.terms(batches), work.features(batches))


@dataclass(frozen=True, slots=True)
class MeasuredSizes:
    """An operation of one request dimension, between known sizes by interpolation."""

    sizes: Floats
    """Values of the dimension that were measured or filled up, growing, shape (num_points,)."""
    known_ns: Floats
    """Their latencies, shape (num_points,)."""
    beyond: OperationLatency | None = None
    """What tells how latency grows above the largest size; None for in proportion to it."""
    source: Source = "measured"
    """Where the latencies are from."""
    known_error: float | None = None
    """Its relative error, where some sizes were filled up; None for what leaving sizes out tells."""

    @property
    def relative_error(self) -> float:
        """Median relative error at measured sizes that are left out."""
        return left_out_error(self.sizes, self.known_ns) if self.known_error is None else self.known_error

    @property
    def regressor(self) -> Regressor | None:
        """What was fitted to the same records, and tells their intervals; None where nothing was."""
        return self.beyond.regressor if isinstance(self.beyond, MeasuredOperation) else None

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        asked = work.sizes(batches)
        growth = np.maximum(asked / self.sizes[-1], 1)
        above = asked > self.sizes[-1]
        if self.beyond is not None and above.any():
            last = batches.of_counts(*(np.array([int(self.sizes[-1])]),) * 2)
            growth = np.where(above, self.beyond.latency_ns(work, batches) / self.beyond.latency_ns(work, last), 1)
        return np.asarray(np.interp(asked, self.sizes, self.known_ns) * growth)


@dataclass(frozen=True, slots=True)
class MeasuredAttention:
    """Attention of one shape, by a regressor of its own over batches of every kind."""

    shape: AttentionShape
    """Its heads."""
    hardware: Hardware
    """The device."""
    regressor: FamilyRegressor
    """The shape's regressor."""
    source: Source = "measured"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error at batches that were held out."""
        return self.regressor.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return self.regressor.predict_ns(*mixed_inputs(self.hardware, self.shape, batches.attention(work.window)))


@dataclass(frozen=True, slots=True)
class CollectiveTable:
    """A collective, between the payloads that were measured by interpolation of logarithms."""

    payload_bytes: Floats
    """Measured payloads, growing, shape (num_points,)."""
    measured_ns: Floats
    """Their latencies, shape (num_points,)."""
    source: Source = "measured"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error at measured payloads that are left out, each alone."""
        return left_out_error(np.log(self.payload_bytes), np.log(self.measured_ns), np.expm1)

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return by_bytes((self.payload_bytes, self.measured_ns), work.payload_bytes(batches))


def left_out_error(
    x: Floats, y: Floats, relative: Callable[[Floats], Floats] | None = None, fallback: float = ESTIMATE_ERROR
) -> float:
    """Return the median relative error of interpolating each inner point between its neighbours.

    Args:
        x: Growing places, shape (num_points,).
        y: Values, shape (num_points,).
        relative: Makes a difference of two values relative; by default it is divided by the value.
        fallback: What too few points are taken to have.
    """
    if len(x) <= _FEW:
        return fallback
    weight = (x[1:-1] - x[:-2]) / (x[2:] - x[:-2])
    difference = y[:-2] + weight * (y[2:] - y[:-2]) - y[1:-1]
    return float(np.median(np.abs(difference / y[1:-1] if relative is None else relative(difference))))
