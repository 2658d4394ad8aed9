"""What to measure next, and when to stop: decided by what is known, over operations whose latencies are laws."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.measure import Knowledge, next_point, outlook
from dooly.measure._adaptive import MIN_POINTS
from dooly.predict import Points

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

SIZES = np.log(np.geomspace(1, 8192, 60))


def _points(number: int, width: float = 1.0) -> Points:
    return Points(np.column_stack([SIZES, np.full(len(SIZES), np.log(width))]), np.full(len(SIZES), number))


def _law(level: float, noise: float = 0.0, seed: int = 0) -> Floats:
    """Return logarithms of ratios to a roofline: a bend that all operations share, a level of one's own, and noise."""
    return level + 0.3 * np.tanh(SIZES - 4) + noise * np.random.default_rng(seed).standard_normal(len(SIZES))


def _swept(knowledge: Knowledge, points: Points, logs: Floats, cost_s: Floats) -> tuple[Knowledge, list[int]]:
    measured, order = np.zeros(len(points), dtype=bool), []
    while (place := next_point(knowledge, points, cost_s, measured)) is not None:
        knowledge = knowledge.told(points.at(np.array([place])), float(logs[place]))
        measured[place] = True
        order.append(place)
    return knowledge, order


def test_a_smooth_operation_needs_few_points_and_is_then_known() -> None:
    """A sweep of sixty points ends after a fraction of them, with the error that it promised."""
    points, logs = _points(0), _law(0.2)
    knowledge, order = _swept(Knowledge.nothing(2), points, logs, np.ones(60))
    mean, _ = knowledge.process.predict(points)
    rest = np.setdiff1d(np.arange(60), order)
    assert MIN_POINTS <= len(order) <= 20
    assert len(set(order)) == len(order)
    assert np.median(np.abs(np.expm1(mean - logs)[rest])) <= 0.03


def test_a_member_of_a_known_family_needs_fewer() -> None:
    """What ten operations of a family have shown, the eleventh need not show again; alone it takes more."""
    knowledge = Knowledge.nothing(2)
    for number in range(10):
        knowledge, _ = _swept(knowledge, _points(number, 2.0**number), _law(0.02 * number), np.ones(60))
    new, logs = _points(10, 700.0), _law(0.15)
    _, by_family = _swept(knowledge, new, logs, np.ones(60))
    _, alone = _swept(Knowledge.nothing(2), new, logs, np.ones(60))
    assert len(by_family) < len(alone)


def test_noise_ends_a_sweep_at_its_floor() -> None:
    """Ten percent of noise put three out of reach: sweeps end where points tell no more, and know their error."""
    points, believed, found = _points(0), [], []
    for seed in range(8):
        logs = _law(0.0, noise=0.1, seed=seed)
        knowledge, order = _swept(Knowledge.nothing(2), points, logs, np.ones(60))
        error = outlook(knowledge, points).error
        assert error.is_within(0.03)
        assert len(order) < 45
        rest = np.setdiff1d(np.arange(60), order)
        mean, _ = knowledge.process.predict(points)
        believed.append(error.median)
        found.append(np.median(np.abs(np.expm1(mean - logs)[rest])))
    assert np.median(believed) > 0.05
    assert np.mean(np.array(found) < 1.5 * np.array(believed)) >= 0.75


def test_surprises_make_errors_larger() -> None:
    """Where points lie ten standard deviations from their predictions, errors are taken to be larger in proportion."""
    knowledge, _ = _swept(Knowledge.nothing(2), _points(0), _law(0.1), np.ones(60))
    believed = outlook(knowledge, _points(0)).error
    surprised = Knowledge(knowledge.process, (10.0,) * 40, knowledge.num_fitted)
    assert surprised.caution == pytest.approx(10, rel=0.06)
    found = outlook(surprised, _points(0)).error
    assert found.median == pytest.approx(believed.median * surprised.caution / knowledge.caution, rel=1e-3)


def test_of_equal_points_the_cheaper_is_measured() -> None:
    """Where large sizes cost a hundred times more, the first point is a small one; where they cost less, a large one."""
    points, measured = _points(0), np.zeros(60, dtype=bool)
    dear = np.geomspace(1, 100, 60)
    low = next_point(Knowledge.nothing(2), points, dear, measured)
    high = next_point(Knowledge.nothing(2), points, dear[::-1], measured)
    assert low is not None
    assert high is not None
    assert low < high


def test_the_last_point_ends_a_sweep() -> None:
    """A sweep whose points are all measured has no next one, whatever its error."""
    assert next_point(Knowledge.nothing(2), _points(0), np.ones(60), np.ones(60, dtype=bool)) is None
