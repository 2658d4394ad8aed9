"""What to measure next, and when to stop: decided by what is known, over operations whose latencies are laws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.measure import TARGET_ERROR
from dooly.measure._adaptive import MIN_POINTS, ExpectedError, Knowledge, expected_error, gains
from dooly.measure._sampler import Sampler
from dooly.predict import Points, Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

SIZES = np.log(np.geomspace(1, 8192, 60))


def _points(number: int, width: float = 1.0) -> Points:
    return Points(np.column_stack([SIZES, np.full(len(SIZES), np.log(width))]), np.full(len(SIZES), number))


def _law(level: float, noise: float = 0.0, seed: int = 0) -> Floats:
    """Return logarithms of ratios to a roofline: a bend that all operations share, a level of one's own, and noise."""
    return level + 0.3 * np.tanh(SIZES - 4) + noise * np.random.default_rng(seed).standard_normal(len(SIZES))


def _laid(points: Points) -> Sweep:
    """Return a sweep whose roofline is a nanosecond everywhere."""
    return Sweep(("family",), points, np.ones(len(points)))


def _sampler(points: Points, others: Sequence[tuple[Sweep, Floats]] = ()) -> Sampler[int]:
    """Return what sweeps one operation, a place a point."""
    return Sampler({0: _laid(points)}, [{0: place} for place in range(len(points))], {}, others, TARGET_ERROR)


def _swept(points: Points, logs: Floats, others: Sequence[tuple[Sweep, Floats]] = ()) -> tuple[Sampler[int], list[int]]:
    sampler, order = _sampler(points, others), []
    while (found := sampler.next(lambda _place: 1.0)) is not None:
        sampler.told(0, found[0], _ns(logs[found[0]]))
        order.append(found[0])
    return sampler, order


def _ns(log: float) -> float:
    return 1e6 * float(np.exp(log))


def _off(points: Points, logs: Floats, order: list[int]) -> float:
    """Return the median error, at points that were not measured, of what is known by those that were."""
    knowledge, rest = Knowledge.nothing(2), np.setdiff1d(np.arange(len(points)), order)
    knowledge = knowledge.told(points.at(np.array(order)), logs[order] - logs[order[0]])
    mean, _ = knowledge.process.predict(points.at(rest))
    return float(np.median(np.abs(np.expm1(mean + logs[order[0]] - logs[rest]))))


def test_a_smooth_operation_needs_few_points_and_is_then_known() -> None:
    """A sweep of sixty points ends after a fraction of them, with the error that it promised."""
    points, logs = _points(0), _law(0.2)
    _, order = _swept(points, logs)
    assert MIN_POINTS <= len(order) <= 20
    assert len(set(order)) == len(order)
    assert _off(points, logs, order) <= 0.03


def test_a_member_of_a_known_family_needs_fewer() -> None:
    """What ten operations of a family have shown, the eleventh need not show again; alone it takes more."""
    others: list[tuple[Sweep, Floats]] = []
    for number in range(10):
        points, logs = _points(number, 2.0**number), _law(0.02 * number)
        rows = np.array(_swept(points, logs, others)[1])
        others.append((_laid(points.at(rows)), 1e6 * np.exp(logs[rows])))
    new, logs = _points(10, 700.0), _law(0.15)
    assert len(_swept(new, logs, others)[1]) < len(_swept(new, logs)[1])


def test_noise_ends_a_sweep_at_its_floor() -> None:
    """Ten percent of noise put three out of reach: sweeps end where points tell no more, and know their error."""
    points, believed, found = _points(0), [], []
    for seed in range(8):
        logs = _law(0.0, noise=0.1, seed=seed)
        sampler, order = _swept(points, logs)
        assert sampler.unfinished() == ()
        assert len(order) < 45
        believed.append(sampler.error())
        found.append(_off(points, logs, order))
    assert np.median(believed) > 0.05
    assert np.mean(np.array(found) < 1.5 * np.array(believed)) >= 0.75


def _expected(knowledge: Knowledge, points: Points, left: npt.NDArray[np.bool_]) -> ExpectedError:
    _, covariance = knowledge.process.predict(points)
    return expected_error(knowledge.surprises, covariance, knowledge.process.parameters.rough, left)


def test_errors_are_as_large_as_surprises_say() -> None:
    """Ten times the surprises make ten times the error; one large surprise among forty hardly moves the median."""
    knowledge, points, everything = Knowledge.nothing(2), _points(0), np.ones(60, dtype=bool)
    rows = np.arange(0, 60, 6)
    knowledge = knowledge.told(points.at(rows), _law(0.1)[rows])
    _, covariance = knowledge.process.predict(points)
    surprises, rough = np.linspace(0, 2, 40), knowledge.process.parameters.rough
    calm, tenfold, once = (
        expected_error(found, covariance, rough, everything)
        for found in (surprises, 10 * surprises, np.append(surprises[:-1], 50.0))
    )
    assert tenfold.median == pytest.approx(10 * calm.median)
    assert tenfold.p90 == pytest.approx(10 * calm.p90)
    assert once.median == pytest.approx(calm.median, rel=0.05)


def test_surprises_are_those_of_points_left_out() -> None:
    """Each known point counts by what all others say of it; a point off the curve is a surprise, and imagined ones are none."""
    points, rows, logs = _points(0), np.arange(0, 60, 4), _law(0.1)
    calm = Knowledge.nothing(2).told(points.at(rows), logs[rows])
    logs[28] += 1.0
    odd = Knowledge(calm.process.__class__(calm.process.parameters, points.at(rows), logs[rows]))
    assert odd.surprises[7] == odd.surprises[:15].max() > 3 * calm.surprises[:15].max()
    imagined = odd.imagined(points.at(np.array([1, 2, 3])))
    assert len(imagined.process.known) == len(rows) + 3
    np.testing.assert_array_equal(imagined.surprises, odd.surprises)


def test_the_floor_is_what_is_left_when_all_others_are_measured() -> None:
    """Measuring every point but one leaves just the error that was foretold as the floor there, by the same parameters."""
    points, place = _points(0), 30
    knowledge = Knowledge.nothing(2).told(points.at(np.array([0, 20, 59])), _law(0.1)[[0, 20, 59]])
    left = np.arange(60) == place
    foretold = _expected(knowledge, points, left)
    rest = np.setdiff1d(np.arange(60), [0, 20, place, 59])
    process = knowledge.process.told(points.at(rest), _law(0.1)[rest])
    _, variance = process.predict(points.at(np.array([place])))
    deviation = np.sqrt(variance[0, 0] + process.parameters.rough**2)
    assert foretold.floor == pytest.approx(np.quantile(deviation * knowledge.surprises, 0.5), rel=1e-2)
    assert foretold.floor < foretold.median


def test_a_sweep_may_end_at_the_target_or_near_its_floors() -> None:
    """Median and 90th percentile each are to be below the target, or hardly above what is left with every point."""
    assert ExpectedError(0.02, 0.09, 0.0, 0.0).is_within(0.03)
    assert not ExpectedError(0.02, 0.2, 0.0, 0.0).is_within(0.03)
    assert ExpectedError(0.02, 0.2, 0.0, 0.19).is_within(0.03)
    assert ExpectedError(0.08, 0.2, 0.075, 0.19).is_within(0.03)
    assert not ExpectedError(0.08, 0.2, 0.05, 0.19).is_within(0.03)


def test_a_point_is_worth_what_it_tells_of_all_sweeps_that_go_on() -> None:
    """A point that two sweeps hang on is worth more than one of a sweep alone; what does not count adds nothing."""
    covariance = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = gains(covariance, 0.1, np.ones(3))
    assert found[0] == pytest.approx(found[1])
    assert found[0] == pytest.approx((1 + 0.81) / 1.01)
    assert found[2] == pytest.approx(1 / 1.01)
    np.testing.assert_allclose(gains(covariance, 0.1, np.array([1.0, 0.0, 0.0])), [1 / 1.01, 0.81 / 1.01, 0.0])


def test_of_equal_points_the_cheaper_is_measured() -> None:
    """Where large sizes cost a hundred times more, the first point is a small one; where they cost less, a large one."""
    dear = np.geomspace(1, 100, 60)
    low = _sampler(_points(0)).next(lambda place: float(dear[place]))
    high = _sampler(_points(0)).next(lambda place: float(dear[59 - place]))
    assert low is not None
    assert high is not None
    assert low[0] < high[0]


def test_the_last_point_ends_a_sweep() -> None:
    """A sweep whose points are all measured has no next one, whatever its error would be."""
    sampler, noise = _sampler(_points(0)), np.random.default_rng(0).standard_normal(60)
    for place in range(60):
        sampler.told(0, place, _ns(noise[place]))
    assert sampler.next(lambda _place: 1.0) is None


def test_points_that_were_measured_do_not_hide_those_that_were_not() -> None:
    """Of a wave known but for its end, all points together would end the sweep at the target, and those of the rest do not."""
    points = Points(np.linspace(0, 10, 40)[:, None], np.zeros(40, dtype=np.int64))
    logs = 0.3 * np.sin(1.3 * points.coordinates[:, 0]) + 0.01 * np.random.default_rng(0).standard_normal(40)
    left = np.arange(40) >= 32
    knowledge = Knowledge.nothing(1).told(points.at(np.flatnonzero(~left)), logs[~left])
    diluted = _expected(knowledge, points, np.ones(40, dtype=bool))
    judged = _expected(knowledge, points, left)
    assert diluted.median < TARGET_ERROR < judged.median
    mean, _ = knowledge.process.predict(points.at(np.flatnonzero(left)))
    assert np.median(np.abs(np.expm1(mean - logs[left]))) > TARGET_ERROR
    assert _expected(knowledge, points, np.zeros(40, dtype=bool)).median == 0.0
