"""What passes after the first measure: some points of each operation, and all of them where its level moved."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import JsonObject, Record
from dooly.catalog import PASSES
from dooly.measure._passes import Passes, num_checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

KEY = ("a", ())
POINTS = [JsonObject({"d0": tokens}) for tokens in range(1, 49)]


def _log_ratios(_key: tuple[str, tuple[str, ...]], _point: JsonObject, latency_ns: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array(latency_ns) / 1000 - 1


def _passes(*later: list[float], num_points: int = 20, target: float = 0.03) -> Passes:
    """Return operations a, b and so on, each of as many points, of 1,000 ns, of which the first ones were measured again."""
    points = POINTS[:num_points]
    found = {
        (name, ()): {point: [1000.0, *again] for point, again in zip(points, [[ns] for ns in took] + [[]] * 48, strict=False)}
        for name, took in zip("abcdefgh", later, strict=False)
    }
    counts = {key: Counter({point: len(took) for point, took in own.items()}) for key, own in found.items()}
    means = {key: {point: float(np.mean(took)) for point, took in own.items()} for key, own in found.items()}
    return Passes(dict.fromkeys(found, points), counts, means, found, target)


def _record(ns: int, *, number: int, point: JsonObject = POINTS[0], spoiled: bool = False) -> Record:
    return Record("a", "e" * 32, point, np.array([ns]), {"spoiled": spoiled, "pass": number})


@pytest.mark.parametrize(
    ("later", "stands"),
    [
        ([1020.0] * 4, None),
        ([1020.0] * 5, True),
        ([1040.0] * 5, False),
        ([960.0] * 5, False),
        ([1000.0, 1040.0, 960.0, 1050.0, 970.0], True),
        ([1000.0, 1000.0, 1000.0, 1100.0, 1100.0], True),
        ([1050.0, 1050.0, 1080.0, 1100.0, 1100.0], False),
    ],
    ids=["too few", "within the target", "slower", "faster", "to and fro", "two in five are slower", "all are slower"],
)
def test_the_mean_over_points_tells_whether_a_level_stands(later: list[float], *, stands: bool | None) -> None:
    """Of points that were measured again: a quarter of them all, by the mean, beyond what comes out by chance."""
    assert num_checked(20) == 5
    assert _passes(later).levels(_log_ratios) == {"a": stands}
    assert _passes(later).levels(None) == {"a": None}


@pytest.mark.parametrize(("later", "stands"), [([1040.0], False), ([1020.0], True), ([1500.0, 1700.0], False)])
def test_where_too_few_points_tell_how_they_scatter_the_target_decides(later: list[float], *, stands: bool) -> None:
    """Of an operation of one point or two, alone."""
    assert _passes(later, num_points=len(later)).levels(_log_ratios) == {"a": stands}


def test_how_points_scatter_is_told_by_all_operations_together() -> None:
    """Three points that are slower by half moved beside steady operations, and may not have where others go as far to and fro."""
    moved, steady, restless = [1500.0, 1650.0, 1350.0], [1000.0, 1100.0, 900.0], [300.0, 1000.0, 1700.0]
    assert _passes(moved, steady, steady, num_points=12).levels(_log_ratios) == {"a": False, "b": True, "c": True}
    assert _passes(moved, restless, restless, num_points=12).levels(_log_ratios) == {"a": True, "b": True, "c": True}


@pytest.mark.parametrize("num_points", [12, 20, 48])
def test_as_many_levels_are_taken_to_move_by_chance_as_are_said_to(num_points: int) -> None:
    """Of eight operations whose points scatter by a tenth and keep their level one in twenty, whatever their number of points."""
    rng, num_moved, times = np.random.default_rng(0), 0, 200
    for _ in range(times):
        later = 1000 + 100 * rng.standard_normal((8, num_checked(num_points)))
        num_moved += list(_passes(*later.tolist(), num_points=num_points, target=0).levels(_log_ratios).values()).count(False)
    assert 0.035 < num_moved / (8 * times) < 0.065


def test_until_levels_are_told_a_quarter_is_checked() -> None:
    """What is checked already counts, and no further pass is wanted yet."""
    assert _passes([]).lacking(1, _log_ratios) == {"a": 5}
    assert _passes([1040.0] * 2).lacking(1, _log_ratios) == {"a": 3}
    assert _passes([1040.0] * 5).lacking(1, None) == {}
    assert _passes([]).lacking(2, _log_ratios) == {}


def test_a_level_that_moved_wants_every_pass() -> None:
    """Of all points, those that were measured twice once more."""
    moved = _passes([1040.0] * 5)
    assert moved.lacking(1, _log_ratios) == {"a": 15}
    assert moved.lacking(2, _log_ratios) == {"a": 20}
    assert moved.num_again(_log_ratios) == PASSES * 20 - 25
    assert _passes([1020.0] * 5).num_again(_log_ratios) == 0


def test_what_disturbed_records_alone_tell_does_not_count() -> None:
    """A point without a record that counts is one to measure, in the first pass; six disturbed ones are no level that moved."""
    counts, latencies_ns = Counter({POINTS[0]: 1, POINTS[2]: PASSES}), dict.fromkeys(POINTS[:3], 3000.0)
    passes = Passes({KEY: POINTS}, {KEY: counts}, {KEY: latencies_ns}, {KEY: {POINTS[0]: [3000.0]}}, 0.03)
    assert passes.latencies_ns == {KEY: {POINTS[0]: 3000.0, POINTS[2]: 3000.0}}
    assert passes.levels(_log_ratios) == {"a": None}


def test_a_calm_record_takes_the_place_of_disturbed_ones() -> None:
    """Where the first pass was disturbed to the end, a calm second one is what the point takes, and no level that moved."""
    passes = Passes({KEY: POINTS}, {}, {}, {}, 0.03)
    passes.told(_record(3000, number=0, spoiled=True))
    assert passes.latencies_ns[KEY] == {POINTS[0]: 3000.0}
    passes.told(_record(1000, number=1))
    assert passes.latencies_ns[KEY] == {POINTS[0]: 1000.0}
    assert passes.levels(_log_ratios) == {"a": None}


@pytest.mark.parametrize("spoiled", [False, True])
def test_disturbed_checks_tell_nothing_of_levels(*, spoiled: bool) -> None:
    """Of five points that take twice as long the second time, and are known to have been disturbed, five others are checked."""
    passes = _passes([])
    for point in POINTS[:5]:
        passes.told(_record(2000, point=point, number=1, spoiled=spoiled))
    assert passes.lacking(1, _log_ratios) == ({"a": 5} if spoiled else {"a": 15})
    assert passes.levels(_log_ratios) == {"a": None if spoiled else False}


def test_a_point_that_cannot_be_run_again_is_checked_at_another() -> None:
    """It counts no more, and the check that failed is lacking."""
    passes = _passes([1000.0] * 4)
    assert passes.lacking(1, _log_ratios) == {"a": 1}
    passes.told(Record("a", "e" * 32, POINTS[4], np.empty(0, dtype=np.int64), {"pass": 1}, infeasible="out of memory"))
    assert passes.lacking(1, _log_ratios) == {"a": 1}


def test_points_beyond_the_limits_count_for_nothing() -> None:
    """What a store holds of larger batches is not measured again at smaller limits."""
    found = {point: [1000.0] for point in POINTS}
    passes = Passes({KEY: POINTS[:4]}, {KEY: Counter(POINTS)}, {KEY: dict.fromkeys(POINTS, 1000.0)}, {KEY: found}, 0.03)
    assert passes.lacking(1, _log_ratios) == {"a": 3}
