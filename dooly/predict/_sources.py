"""Where a latency is from, and what every prediction of an operation says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._operation import OperationWork

    Floats = npt.NDArray[np.float64]

Source = Literal["measured", "family", "estimated"]
"""Where a latency is from: records of this very operation, others of its family, or bytes over a measured bandwidth.

Where an operation has records, but its family's process filled up more points than were measured, it is from its family; so is
one whose records hold a kernel that is taken off by the bytes it moves.
"""
SOURCES: tuple[Source, ...] = ("measured", "family", "estimated")
ESTIMATE_ERROR = 0.5
"""Relative error that an estimate is taken to have: nothing measures it."""


class OperationLatency(Protocol):
    """Predicts how long one run of an operation takes."""

    @property
    def source(self) -> Source:
        """Where the latencies are from."""
        ...

    @property
    def relative_error(self) -> float:
        """Typical relative error."""
        ...

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        ...
