"""The Gaussian process of a family, against what its formulas say by other ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal

from dooly.predict import FamilyProcess, Parameters, Points
from dooly.predict._family_process import _loss, covariance

if TYPE_CHECKING:
    import numpy.typing as npt

RNG = np.random.default_rng(0)
KNOWN = Points(RNG.uniform(0, 8, (14, 2)), np.repeat([0, 1], 7))
LOGS = np.sin(KNOWN.coordinates[:, 0]) * 0.3 + 0.1 * KNOWN.operations
PARAMETERS = Parameters(0.4, 0.1, 0.2, 0.05, (1.5, 3.0))


def test_predictions_are_those_of_the_joint_distribution() -> None:
    """Mean and variance at a point are those of its normal distribution given the known ones, computed from the joint one."""
    asked = Points(np.array([[2.5, 1.0]]), np.array([1]))
    every = KNOWN.with_more(asked)
    joint = covariance(PARAMETERS, every, every) + np.diag([*[0.05**2 + 1e-6] * 14, 0.0])
    regression = np.linalg.solve(joint[:14, :14], joint[:14, 14])
    mean, variance = FamilyProcess(PARAMETERS, KNOWN, LOGS).predict(asked)
    assert mean[0] == pytest.approx(regression @ LOGS)
    assert variance[0, 0] == pytest.approx(joint[14, 14] - joint[14, :14] @ regression)


def test_left_out_points_are_predicted_by_the_others() -> None:
    """The closed form gives what a process without the point says of it."""
    process = FamilyProcess(PARAMETERS, KNOWN, LOGS)
    away, spread = process.left_out()
    for place in (0, 9):
        rest = np.delete(np.arange(14), place)
        mean, variance = FamilyProcess(PARAMETERS, KNOWN.at(rest), LOGS[rest]).predict(KNOWN.at(np.array([place])))
        assert away[place] == pytest.approx(LOGS[place] - mean[0])
        assert spread[place] == pytest.approx(np.sqrt(variance[0, 0] + 0.05**2 + 1e-6))


def test_the_likelihood_and_its_slopes_are_right() -> None:
    """The loss differs between two settings as the normal density and the belief do, and its gradient is that of differences."""
    believed, theta = Parameters.unknown(2).logs(), PARAMETERS.logs()

    def expected(logs: npt.NDArray[np.float64]) -> float:
        total = covariance(Parameters.of_logs(logs), KNOWN, KNOWN) + np.eye(14) * (np.exp(logs[3]) ** 2 + 1e-6)
        density = multivariate_normal(np.zeros(14), total).logpdf(LOGS)
        return float(-density + 0.5 * ((logs - believed) ** 2).sum())

    found = [_loss(logs, believed, KNOWN, LOGS)[0] for logs in (theta, believed)]
    assert found[0] - found[1] == pytest.approx(expected(theta) - expected(believed))
    error = check_grad(lambda t: _loss(t, believed, KNOWN, LOGS)[0], lambda t: _loss(t, believed, KNOWN, LOGS)[1], theta)
    assert error < 1e-3


def test_fitting_finds_what_is_rough_and_what_is_not() -> None:
    """Noise of a tenth is found as such, and a coordinate that matters to nothing gets a longer length than one that does."""
    points = Points(RNG.uniform(0, 8, (120, 2)), np.zeros(120, dtype=np.int64))
    logs = np.sin(points.coordinates[:, 0]) + 0.1 * RNG.standard_normal(120)
    found = FamilyProcess(Parameters.unknown(2), points, logs).refitted().parameters
    assert found.rough == pytest.approx(0.1, rel=0.3)
    assert found.lengths[1] > 2 * found.lengths[0]


@pytest.mark.parametrize("logs", [np.zeros(14), np.linspace(0, 60, 14), np.full(14, 3.0)], ids=["zeros", "steep", "constant"])
def test_fitting_survives_what_is_no_draw_of_any_process(logs: npt.NDArray[np.float64]) -> None:
    """Points at one place, values that never change and values that explode end the search within its bounds."""
    points = Points(np.repeat(KNOWN.coordinates[:7], 2, axis=0), np.zeros(14, dtype=np.int64))
    found = FamilyProcess(Parameters.unknown(2), points, logs).refitted()
    away = found.parameters.logs() - Parameters.unknown(2).logs()
    assert np.abs(away).max() <= 4 + 1e-9
    assert np.isfinite(found.predict(points)[0]).all()


def test_nothing_known_is_believed_as_it_was() -> None:
    """Without a point the mean is 0, the variance the prior's, and fitting changes nothing."""
    empty = FamilyProcess(PARAMETERS, KNOWN.at(np.array([], dtype=np.int64)), np.empty(0))
    mean, variance = empty.predict(KNOWN)
    assert not mean.any()
    assert np.allclose(variance, covariance(PARAMETERS, KNOWN, KNOWN))
    assert empty.refitted() is empty
