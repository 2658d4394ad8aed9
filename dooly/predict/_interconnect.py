"""Links between ranks, stated rather than measured, and what collectives take over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._kinds import Collective
    from dooly.predict._operation import OperationWork
    from dooly.predict._sources import Source

    Floats = npt.NDArray[np.float64]

_FIELDS = ("bandwidth", "latency")
_PAIR = 2
"""Ranks that exchange all they have at once, as the engine's own all-reduce does between two."""


@dataclass(frozen=True, slots=True)
class Interconnect:
    """A link between two ranks of a layout.

    Examples:
        >>> dooly.predict.Interconnect.parse("bandwidth=16,latency=20").latency_ns
        20000.0
    """

    bytes_per_s: float
    """Bandwidth in one direction."""
    latency_ns: float
    """What a message takes beside its bytes, in nanoseconds."""

    def __post_init__(self) -> None:
        if not (0 < self.bytes_per_s < math.inf and 0 <= self.latency_ns < math.inf):
            raise InvalidInputError(
                f"Interconnect: bytes_per_s must be above 0 and latency_ns at least 0, got {self.bytes_per_s}, {self.latency_ns}"
            )

    @classmethod
    def parse(cls, text: str, option: str = "--interconnect") -> Interconnect:
        """Return the link of a text such as `bandwidth=16,latency=20`, in GB/s and microseconds, that an option was given.

        Raises:
            InvalidInputError: It is of another form, the bandwidth is not above 0 or the latency below it.
        """
        parts = [part.partition("=") for part in text.split(",")]
        values = {name.strip(): value for name, _, value in parts} if len(parts) == len(_FIELDS) else {}
        try:
            bandwidth, latency = (float(values[name]) for name in _FIELDS)
            return cls(1e9 * bandwidth, 1e3 * latency)
        except (KeyError, ValueError) as error:
            raise InvalidInputError(
                f"{option}: {text!r} is not as bandwidth=16,latency=20: each once, in GB/s above 0 and us from 0"
            ) from error


@dataclass(frozen=True, slots=True)
class LinkedCollective:
    """A collective over a stated link: two ranks exchange all at once, more pass parts around a ring.

    A ring of p ranks takes p-1 messages of a p-th part each to reduce or to gather, and both for an all-reduce
    (Thakur et al., IJHPCA 2005).
    """

    collective: Collective
    """What is computed, over how many ranks."""
    link: Interconnect
    """The link."""
    source: ClassVar[Source] = "estimated"
    relative_error: ClassVar[float] = 0.5

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        ranks, payload = self.collective.num_ranks, work.payload_bytes(batches)
        both_ways = self.collective.operator == "all_reduce"
        if ranks == _PAIR:
            messages, part = 1, payload if both_ways else payload / _PAIR
        else:
            messages, part = (ranks - 1) * (2 if both_ways else 1), payload / ranks
        return np.asarray(messages * (self.link.latency_ns + 1e9 * part / self.link.bytes_per_s))
