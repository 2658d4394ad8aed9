"""A family of few points: a Gaussian process over all its operations, which knows how sure it is.

Over ten points or a thousand, where trees have too little to split: the logarithm of the ratio to the roofline is taken for a
draw of a Gaussian process. What operations of one family share is smooth in the logarithms of their sizes and of their
configuration, each over a length of its own; an operation's own departure from that is a level and a smooth part that no other
operation shares; and a rough part is no neighbour's, as where a kernel changes from one size to the next, or where measuring
again gives another value. How large these are, and the lengths, are those under which all that was measured is likeliest.

Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006), chapters 2 and 5; an operation's own process on top of a
shared one is the intrinsic model of coregionalisation of Bonilla, Chai and Williams (NeurIPS 2007) with equal tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_ROOT = np.sqrt(3.0)
_MOST_STEPS = 40
_JITTER = 1e-6
_FARTHEST = 4.0
"""From there, in logarithms, that the search goes: no covariance is singular within it."""
_WIDTH = 1.0
"""Of the belief about each parameter, in logarithms: a factor of e is one standard deviation."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """How a family behaves: standard deviations of the logarithm of the ratio to the roofline, and lengths."""

    shared: float
    """Of the smooth part that all operations share."""
    own: float
    """Of an operation's own smooth part."""
    level: float
    """Of an operation's own level."""
    rough: float
    """Of what no other point shares."""
    lengths: tuple[float, ...]
    """Over how much of each coordinate the smooth parts change."""

    @classmethod
    def unknown(cls, num_coordinates: int) -> Parameters:
        """Return what is believed of a family of which nothing is known."""
        return cls(0.5, 0.05, 0.05, 0.04, (2.0,) * num_coordinates)

    def logs(self) -> Floats:
        """Return the logarithms of all, shape (4 + num_coordinates,)."""
        return np.log([self.shared, self.own, self.level, self.rough, *self.lengths])

    @classmethod
    def of_logs(cls, logs: Floats) -> Parameters:
        """Return the parameters whose logarithms these are."""
        shared, own, level, rough, *lengths = np.exp(logs).tolist()
        return cls(shared, own, level, rough, tuple(lengths))


_LEVEL = 1.0
"""Standard deviation of a whole family's level beside its roofline: whatever it is, the first points tell."""


@dataclass(frozen=True, slots=True)
class Points:
    """Points of a family's operations."""

    coordinates: Floats
    """Logarithms of sizes and of configuration values, shape (num_points, num_coordinates)."""
    operations: Ints
    """Number of the operation of each, shape (num_points,)."""

    def __len__(self) -> int:
        return len(self.operations)

    def at(self, places: Ints) -> Points:
        """Return some of the points."""
        return Points(self.coordinates[places], self.operations[places])

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """Return the points of all parts, one behind the other."""
        return cls(np.concatenate([p.coordinates for p in parts]), np.concatenate([p.operations for p in parts]))

    def with_more(self, other: Points) -> Points:
        """Return these points, and others behind them."""
        return Points.joined([self, other])


@dataclass(frozen=True)
class FamilyProcess:
    """What is known of a family after some points were measured."""

    parameters: Parameters
    """How the family behaves."""
    known: Points
    """What was measured."""
    logs: Floats
    """Logarithms of the ratio of each to its roofline, shape (num_known,)."""

    def predict(self, points: Points) -> tuple[Floats, Floats]:
        """Return mean and covariance of the logarithm of the ratio at points, rough part left out, shapes (n,) and (n, n)."""
        prior = covariance(self.parameters, points, points)
        if not len(self.known):
            return np.zeros(len(points)), prior
        cross = covariance(self.parameters, points, self.known)
        weights = cross @ self._precision
        return np.asarray(weights @ self.logs), np.asarray(prior - weights @ cross.T)

    def told(self, points: Points, logs: Floats) -> FamilyProcess:
        """Return the process that knows more points, with their logarithms of the ratio to the roofline, shape (num_points,)."""
        return replace(self, known=self.known.with_more(points), logs=np.concatenate([self.logs, logs]))

    def left_out(self) -> tuple[Floats, Floats]:
        """Return how far each known point lies from what the others say, and the standard deviation expected, shape (num_known,).

        In closed form (Rasmussen and Williams, 5.4.2).
        """
        precision = np.diag(self._precision)
        return np.asarray(self._precision @ self.logs / precision), np.asarray(1 / np.sqrt(precision))

    def refitted(self) -> FamilyProcess:
        """Return the same with the parameters under which what is known is likeliest, found from those that it has."""
        if len(self.known) == 0:
            return self
        return replace(self, parameters=fit_parameters(self.parameters, self.known, self.logs))

    @cached_property
    def _precision(self) -> Floats:
        """Inverse of the covariance of what is known, rough part included, shape (num_known, num_known)."""
        total = covariance(self.parameters, self.known, self.known)
        return np.asarray(np.linalg.inv(total + np.eye(len(total)) * (self.parameters.rough**2 + _JITTER)))


def covariance(parameters: Parameters, left: Points, right: Points) -> Floats:
    """Return the covariance between points, rough part left out, shape (num_left, num_right)."""
    matern, _ = _matern(parameters, left, right)
    same = left.operations[:, None] == right.operations[None, :]
    return np.asarray(_LEVEL**2 + parameters.shared**2 * matern + same * (parameters.own**2 * matern + parameters.level**2))


def fit_parameters(start: Parameters, known: Points, logs: Floats) -> Parameters:
    """Return the parameters under which points are likeliest: the maximum of the marginal likelihood, near a belief.

    Args:
        start: Where to start. The belief is around `Parameters.unknown`, so that few points change little.
        known: The points.
        logs: Logarithms of the ratio of each to its roofline, shape (num_known,).
    """
    from scipy.optimize import minimize

    believed = Parameters.unknown(len(start.lengths)).logs()
    bounds = [(value - _FARTHEST, value + _FARTHEST) for value in believed]
    options, args = {"maxiter": _MOST_STEPS}, (believed, known, logs)
    found = minimize(_loss, start.logs(), args=args, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return Parameters.of_logs(found.x)


def _loss(theta: Floats, believed: Floats, known: Points, logs: Floats) -> tuple[float, Floats]:
    """Return the negative logarithm of the posterior of parameters, but for a constant, and its gradient."""
    from scipy.linalg import cho_factor, cho_solve

    p = Parameters.of_logs(theta)
    matern, slopes = _matern(p, known, known)
    same = known.operations[:, None] == known.operations[None, :]
    smooth = p.shared**2 + p.own**2 * same
    total = _LEVEL**2 + smooth * matern + same * p.level**2 + np.eye(len(logs)) * (p.rough**2 + _JITTER)
    factor = cho_factor(total, lower=True, check_finite=False)
    inverse = cho_solve(factor, np.eye(len(logs)), check_finite=False)
    weights = inverse @ logs
    by = inverse - np.outer(weights, weights)  # of which half the trace with a derivative is the slope
    away = (theta - believed) / _WIDTH
    loss = 0.5 * logs @ weights + np.log(np.diag(factor[0])).sum() + 0.5 * away @ away
    slope = [
        (by * matern).sum() * p.shared**2,
        (by * same * matern).sum() * p.own**2,
        (by * same).sum() * p.level**2,
        np.trace(by) * p.rough**2,
        *(0.5 * (by * smooth * slopes(d)).sum() for d in range(len(p.lengths))),
    ]
    return float(loss), np.array(slope) + away / _WIDTH


def _matern(parameters: Parameters, left: Points, right: Points) -> tuple[Floats, Callable[[int], Floats]]:
    """Return Matérn's correlation of degree 3/2, and what gives its slope by the logarithm of a length."""
    lengths = np.array(parameters.lengths)
    a, b = left.coordinates / lengths, right.coordinates / lengths
    squares = np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T, 0.0)
    distance = _ROOT * np.sqrt(squares)
    decay = np.exp(-distance)
    return (1 + distance) * decay, lambda place: 3 * decay * (a[:, place][:, None] - b[:, place][None, :]) ** 2
