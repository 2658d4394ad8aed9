"""When requests arrive: gaps of a given mean and spread, at one rate or at one rate after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._workload import NS_PER_S

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of time in which requests arrive at one rate."""

    rate: float
    """Mean requests per second, at least 0."""
    duration_s: float
    """Seconds, more than 0."""

    def __post_init__(self) -> None:
        if not (0 <= self.rate < math.inf and 0 < self.duration_s < math.inf):
            raise WorkloadError(f"stage of {self.rate:g} requests a second for {self.duration_s:g} s: needs both, and finite")


def _gaps_s(number: int, rate: float, cv: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw gamma-distributed gaps of that mean rate and coefficient of variation, shape (number,); 0 makes them equal."""
    if not 0 <= cv < math.inf:
        raise WorkloadError(f"cv must be a finite number, at least 0, got {cv}")
    return np.full(number, 1 / rate) if cv == 0 else rng.gamma(shape=cv**-2, scale=cv**2 / rate, size=number)


def draw_arrivals_ns(num_requests: int, rate: float, cv: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw arrival times with gamma-distributed gaps; the first request arrives at 0.

    Args:
        num_requests: How many.
        rate: Mean requests per second; infinite sends everything at once.
        cv: Coefficient of variation of the gaps; 1 makes a Poisson process, more makes bursts, 0 a steady beat.
        rng: Source of randomness.

    Returns:
        Nanoseconds, ascending, shape (num_requests,).

    Raises:
        WorkloadError: `rate` is not positive, or `cv` negative.
    """
    if not rate > 0:
        raise WorkloadError(f"rate must be a positive number of requests per second or inf, got {rate}")
    gaps_s = _gaps_s(num_requests, rate, cv, rng)
    gaps_s[0] = 0.0
    return np.rint(np.cumsum(gaps_s) * NS_PER_S).astype(np.int64)


def draw_staged_arrivals_ns(stages: tuple[Stage, ...], cv: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw the arrivals of one stage after another: a process of mean gap 1 in requests expected, set back into time.

    Args:
        stages: At least one.
        cv: Coefficient of variation of the gaps, in requests expected; see `draw_arrivals_ns`.
        rng: Source of randomness.

    Returns:
        Nanoseconds from the first stage's start, ascending, shape (num_requests,); how many is left to chance, unless `cv` is 0.

    Raises:
        WorkloadError: No request is expected, or `cv` is negative.
    """
    ends_s = np.cumsum([0.0, *(stage.duration_s for stage in stages)])
    expected = np.cumsum([0.0, *(stage.rate * stage.duration_s for stage in stages)])
    if expected[-1] < 1:
        raise WorkloadError(f"stages: {expected[-1]:g} requests are expected in all; give longer ones, or higher rates")
    passed = np.zeros(1)
    while passed[-1] < expected[-1]:
        passed = np.concatenate([passed, passed[-1] + np.cumsum(_gaps_s(1 + int(expected[-1]), 1.0, cv, rng))])
    times_s = np.interp(passed[passed < expected[-1]], expected, ends_s)
    arrivals_ns: npt.NDArray[np.int64] = np.rint(times_s * NS_PER_S).astype(np.int64)
    return arrivals_ns
