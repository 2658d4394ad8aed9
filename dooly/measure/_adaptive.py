"""Which point of a sweep to measure next, and when to stop: decisions alone, apart from whatever measures.

What is known of a family is a Gaussian process over all its operations (`dooly.predict.FamilyProcess`). The next point is the
one after which the variance over the sweeps of its family that go on is expected to be smallest, for each second that it takes:
Cohn's criterion (D. Cohn, *Neural Network Exploration Using Optimal Experiment Design*, NeurIPS 1993; for Gaussian processes,
Seo, Wallat, Graepel and Obermayer, IJCNN 2000). A sweep ends when the error expected at a point that nobody measures is below the
target, or when measuring more would hardly lower it: what no neighbour tells, be it noise or a kernel that changes from one size
to the next, is a floor.

How far standard deviations may be trusted is told by what was measured: each known point of the family is predicted by all others
(in closed form; Rasmussen and Williams, 5.4.2), and how far it lies from that, in the standard deviations expected, is a
surprise. Errors where nobody measured are taken to be spread as surprises are, times the standard deviation there: the residuals
of locally weighted conformal prediction (Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, JASA 2018), left out one by one. So
neither a few large surprises make all errors large, nor does a fit that knows its points end a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict import FamilyProcess, Parameters, Points

if TYPE_CHECKING:
    import numpy.typing as npt

    Flags = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

TARGET_ERROR = 0.03
"""Median relative error of an operation's latency at points that were not measured, at which its sweep ends."""
TAIL = 10 / 3
"""The 90th percentile may be so many times the median's target."""
MIN_POINTS = 3
"""Of each operation, however well its family knows it: a level and a slope that are its own show in no fewer."""
SLACK = 0.1
"""A sweep ends too where its error is by less than this share above what all more points would leave of it."""
_DOUBT, _DOUBTS = 1.5, 8
"""How many times larger than expected errors are taken to be before any surprise tells, and as how many surprises that counts."""
_QUANTILES = (0.5, 0.9)
_JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """The relative error that is expected at points of a sweep that nobody measures."""

    median: float
    """Its median."""
    p90: float
    """Its 90th percentile."""
    floor: float
    """The median that would be left if all points were measured, known ones once more, but the one asked for."""
    floor_p90: float
    """The 90th percentile that would be left."""

    def is_within(self, target: float, slack: float = SLACK) -> bool:
        """Tell whether a sweep may end: the error is below the target, or above its floor by no more than `slack` of that."""
        median, p90 = max(target, (1 + slack) * self.floor), max(TAIL * target, (1 + slack) * self.floor_p90)
        return self.median <= median and self.p90 <= p90


@dataclass(frozen=True)
class Knowledge:
    """What is known of a family, and how well each part of it is told by the rest."""

    process: FamilyProcess
    """What was measured."""
    num_fitted: int = 0
    """Points behind the process's parameters."""
    believed: Knowledge | None = None
    """What is known in truth, where points of the process are imagined: they surprise nobody."""
    fitted_from: int = 1
    """Points of one operation from which on parameters are fitted."""

    @classmethod
    def nothing(cls, num_coordinates: int, fitted_from: int = 1) -> Knowledge:
        """Return the knowledge of a family of which no point was measured."""
        empty = Points(np.empty((0, num_coordinates)), np.empty(0, dtype=np.int64))
        return cls(FamilyProcess(Parameters.unknown(num_coordinates), empty, np.empty(0)), fitted_from=fitted_from)

    def told(self, points: Points, log_ratios: Floats) -> Knowledge:
        """Return what is known after more points.

        Args:
            points: The points.
            log_ratios: Logarithms of the ratio of the latency of each to its roofline, shape (num_points,).
        """
        process = self.process.told(points, log_ratios)
        count = len(process.known)
        told = replace(self, process=process)
        if count < self.num_fitted + max(MIN_POINTS, self.num_fitted // 4) or not told.may_be_fitted:
            return told
        return replace(told, process=process.refitted(), num_fitted=count)

    @property
    def may_be_fitted(self) -> bool:
        """Whether one operation has as many points as it takes to fit parameters, imagined ones included."""
        return bool(np.bincount(self.process.known.operations).max(initial=0) >= self.fitted_from)

    def imagined(self, points: Points) -> Knowledge:
        """Return what would be known after more points that are just as predicted: nothing but where they lie."""
        mean, _ = self.process.predict(points)
        return replace(self, process=self.process.told(points, mean), believed=self.believed or self)

    @cached_property
    def surprises(self) -> Floats:
        """Distances of known points from what all others say, in standard deviations, and what is believed before any tells."""
        if self.believed is not None:
            return self.believed.surprises
        if not len(self.process.known):
            return _BELIEVED
        away, spread = self.process.left_out()
        return np.concatenate([np.abs(away / spread), _BELIEVED])


def _half_normal(count: int) -> Floats:
    """Return the sizes of normal deviations at even shares, shape (count,)."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(0.5 + 0.5 * (place + 0.5) / count) for place in range(count)])


_BELIEVED = _DOUBT * _half_normal(_DOUBTS)


def expected_error(surprises: Floats, covariance: Floats, rough: float, left: Flags) -> ExpectedError:
    """Return the error that is expected at points that nobody measured; 0 where there is none.

    Args:
        surprises: How far points of the family lie from what all others say, in standard deviations, shape (num_surprises,).
        covariance: Of a sweep's points, rough part left out, shape (num_points, num_points).
        rough: Standard deviation of what no other point shares.
        left: Points that nobody measured, shape (num_points,).
    """
    if not left.any():
        return ExpectedError(0.0, 0.0, 0.0, 0.0)
    scatter = rough**2 + _JITTER
    at_last = 1 / np.diag(np.linalg.inv(covariance + np.eye(len(covariance)) * scatter))[left] - scatter
    deviations = [np.sqrt(smooth + rough**2 + _JITTER) for smooth in (np.diag(covariance)[left], at_last)]
    found = [np.quantile(np.outer(deviation, surprises), _QUANTILES) for deviation in deviations]
    return ExpectedError(*np.concatenate(found).tolist())


def gains(covariance: Floats, rough: float, weights: Floats) -> Floats:
    """Return how much measuring each point of some sweeps is expected to lower the variance over all, shape (num_points,).

    Args:
        covariance: Of all points, rough part left out, shape (num_points, num_points).
        rough: Standard deviation of what no other point shares.
        weights: How much the variance at each point counts, shape (num_points,).
    """
    return np.asarray(weights @ np.square(covariance) / (np.maximum(np.diag(covariance), 0) + rough**2))
