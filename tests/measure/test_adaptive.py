"""What to measure next, and when to stop: decided by what is known, over operations whose latencies are laws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.measure import TARGET_ERROR
from dooly.measure._adaptive import MIN_POINTS, Knowledge, outlook
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
    for place in order:
        knowledge = knowledge.told(points.at(np.array([place])), float(logs[place] - logs[order[0]]))
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


def test_surprises_make_errors_larger() -> None:
    """Where points lie ten standard deviations from their predictions, errors are taken to be larger in proportion."""
    knowledge, points, logs = Knowledge.nothing(2), _points(0), _law(0.1)
    for place in range(0, 60, 6):
        knowledge = knowledge.told(points.at(np.array([place])), float(logs[place]))
    believed = outlook(knowledge, points, np.ones(60, dtype=bool)).error
    surprised = Knowledge(knowledge.process, (10.0,) * 40, knowledge.num_fitted)
    assert surprised.caution == pytest.approx(10, rel=0.06)
    found = outlook(surprised, points, np.ones(60, dtype=bool)).error
    assert found.median == pytest.approx(believed.median * surprised.caution / knowledge.caution, rel=1e-3)


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
    knowledge, everything = Knowledge.nothing(1), np.ones(40, dtype=bool)
    for place in range(32):
        knowledge = knowledge.told(points.at(np.array([place])), float(logs[place]))
    left = np.arange(40) >= 32
    judged, diluted = outlook(knowledge, points, left), outlook(knowledge, points, everything)
    assert diluted.error.is_within(TARGET_ERROR)
    assert not judged.error.is_within(TARGET_ERROR)
    mean, _ = knowledge.process.predict(points.at(np.flatnonzero(left)))
    assert np.median(np.abs(np.expm1(mean - logs[left]))) > TARGET_ERROR
    np.testing.assert_array_equal(judged.gains, diluted.gains)
    assert outlook(knowledge, points, ~everything).error.median == 0.0
