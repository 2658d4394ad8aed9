"""How long prompts and answers are: laws that token counts are drawn by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dooly.errors import WorkloadError

if TYPE_CHECKING:
    import numpy.typing as npt


class Lengths(Protocol):
    """A law of token counts."""

    def draw(self, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
        """Return so many counts of at least 1, shape (number,)."""
        ...


@dataclass(frozen=True, slots=True)
class LengthRange:
    """Token counts drawn uniformly from `low` to `high`, both included."""

    low: int
    """Smallest count, at least 1."""
    high: int
    """Largest count, at least `low`."""

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise WorkloadError(f"length range {self.low}-{self.high}: must be 1 <= low <= high")

    def __str__(self) -> str:
        return f"{self.low}-{self.high}"

    def draw(self, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
        """Return so many counts, shape (number,)."""
        return rng.integers(self.low, self.high, size=number, endpoint=True)


@dataclass(frozen=True, slots=True)
class NormalLengths:
    """Token counts drawn from a normal distribution, rounded; those below 1 become 1."""

    mean: float
    """At least 1."""
    stdev: float
    """Standard deviation, at least 0."""

    def __post_init__(self) -> None:
        if not (1 <= self.mean < math.inf and 0 <= self.stdev < math.inf):
            raise WorkloadError(
                f"lengths {self}: the mean must be at least 1, the standard deviation at least 0, and both finite"
            )

    def __str__(self) -> str:
        return f"{self.mean:g}~{self.stdev:g}"

    def draw(self, rng: np.random.Generator, number: int) -> npt.NDArray[np.int64]:
        """Return so many counts, shape (number,)."""
        rounded = np.rint(rng.normal(self.mean, self.stdev, number)).astype(np.int64)
        return np.maximum(rounded, 1)
