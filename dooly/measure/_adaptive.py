"""Which point of a sweep to measure next, and when to stop: decisions alone, apart from whatever measures.

What is known of a family is a Gaussian process over all its operations (`dooly.predict.FamilyProcess`). The next point is the
one after which the variance over the whole sweep is expected to be smallest, for each second that it takes: Cohn's criterion
(D. Cohn, *Neural Network Exploration Using Optimal Experiment Design*, NeurIPS 1993; for Gaussian processes, Seo, Wallat, Graepel
and Obermayer, IJCNN 2000). A sweep ends when the error expected at a point that nobody measures is below the target, or when
measuring more would hardly lower it: what no neighbour tells, be it noise or a kernel that changes from one size to the next, is
a floor.

Every point is predicted before it is measured. How far it lies from the prediction, in the standard deviations expected, is a
surprise; where surprises are larger than they should be, all expected errors are taken to be larger by as much. So the error that
ends a sweep is judged by points held out of the fit that predicted them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict import FamilyProcess, Parameters, Points

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]

TARGET_ERROR = 0.03
"""Median relative error of an operation's latency at points that were not measured, at which its sweep ends."""
TAIL = 10 / 3
"""The 90th percentile may be so many times the median's target."""
MIN_POINTS = 3
"""Of each operation, however well its family knows it: a level and a slope that are its own show in no fewer."""
_SLACK = 0.3
"""A sweep ends too where all that more points could tell lowers the error by less than this."""
_NUM_SURPRISES = 40
_DOUBT, _DOUBTS = 1.5, 4
"""How many times larger errors are taken to be before any surprise tells, and after how many that counts as half."""
_HALF, _NINE_TENTHS = 0.5, 0.9
_FARTHEST = 8.0
_NUM_HALVINGS = 40


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """The relative error that is expected at points of a sweep that nobody measures."""

    median: float
    """Its median."""
    p90: float
    """Its 90th percentile."""
    floor: float
    """The median that would be left if all points were measured but the one asked for."""

    def is_within(self, target: float) -> bool:
        """Tell whether a sweep may end: the error is below the target, or more points would hardly lower it."""
        reachable = max(target, (1 + _SLACK) * self.floor)
        return self.median <= reachable and self.p90 <= TAIL * reachable


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What is known of a family, and how well it predicted what was measured after."""

    process: FamilyProcess
    """What was measured."""
    surprises: tuple[float, ...] = ()
    """How far each of the last points lay from what was predicted of it, in standard deviations."""
    num_fitted: int = 0
    """Points behind the process's parameters."""

    @classmethod
    def nothing(cls, num_coordinates: int) -> Knowledge:
        """Return the knowledge of a family of which no point was measured."""
        empty = Points(np.empty((0, num_coordinates)), np.empty(0, dtype=np.int64))
        return cls(FamilyProcess(Parameters.unknown(num_coordinates), empty, np.empty(0)))

    def told(self, point: Points, log_ratio: float) -> Knowledge:
        """Return what is known after one point more.

        Args:
            point: The point, one.
            log_ratio: Logarithm of the ratio of its latency to its roofline.
        """
        process, surprises = self.process, self.surprises
        if len(process.known):
            mean, variance = process.predict(point)
            expected = np.sqrt(variance[0, 0] + process.parameters.rough**2)
            surprises = (*surprises, float((log_ratio - mean[0]) / expected))[-_NUM_SURPRISES:]
        process = replace(process, known=process.known.with_more(point), logs=np.append(process.logs, log_ratio))
        return replace(self, process=process, surprises=surprises).refitted_if_grown()

    def imagined(self, point: Points) -> Knowledge:
        """Return what would be known after one point that is just as predicted: nothing but where it lies."""
        mean, _ = self.process.predict(point)
        process = replace(self.process, known=self.process.known.with_more(point), logs=np.append(self.process.logs, mean))
        return replace(self, process=process)

    def refitted_if_grown(self) -> Knowledge:
        """Return the same with new parameters where it knows a quarter more points than those were found with."""
        count = len(self.process.known)
        if count < self.num_fitted + max(MIN_POINTS, self.num_fitted // 4):
            return self
        return replace(self, process=self.process.refitted(), num_fitted=count)

    @property
    def caution(self) -> float:
        """How many times larger errors are taken to be than the process expects."""
        squares = float(np.square(self.surprises).sum()) + _DOUBTS * _DOUBT**2
        return max(1.0, float(np.sqrt(squares / (len(self.surprises) + _DOUBTS))))


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of an operation's sweep."""

    error: ExpectedError
    """The error at points that are not measured."""
    gains: Floats
    """How much measuring each point is expected to lower the mean variance over all, shape (num_points,)."""


def outlook(knowledge: Knowledge, sweep: Points, left: Flags) -> Outlook:
    """Return what is expected of an operation's sweep.

    Args:
        knowledge: What is known of its family, its own points included.
        sweep: All its points.
        left: Those that nobody measured, shape (num_points,): they alone are in the error; where none is left, it is 0.
    """
    _, covariance = knowledge.process.predict(sweep)
    rough = knowledge.process.parameters.rough
    observed = np.maximum(np.diag(covariance), 0) + rough**2
    gains = np.square(covariance).mean(axis=0) / observed
    if not left.any():
        return Outlook(ExpectedError(0.0, 0.0, 0.0), gains)
    spread, floor = knowledge.caution * np.sqrt(observed[left]), knowledge.caution * np.array([rough])
    return Outlook(ExpectedError(_quantile(spread, _HALF), _quantile(spread, _NINE_TENTHS), _quantile(floor, _HALF)), gains)


def _quantile(spread: Floats, share: float) -> float:
    """Return a quantile of the sizes of normal deviations, one of each standard deviation, all as likely."""
    from scipy.special import erf

    low, high = 0.0, _FARTHEST * float(spread.max())
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        below = float(np.mean(erf(middle / (spread * np.sqrt(2.0)))))
        low, high = (middle, high) if below < share else (low, middle)
    return high
