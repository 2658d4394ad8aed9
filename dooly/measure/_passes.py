"""What passes found of operations, and which points are to be measured again: some of each, and all where a level moved.

A machine may drift by tens of percent within minutes, and so may what an operation takes: then the passes after the first measure
all of its points again, and their mean counts. On a machine that keeps its level that tells nothing more. Of the 15 operations of
Llama 3.1 8B on an H200 (`benchmarks/profiling_h200.py`) twelve took as long in the second and third pass as in the first, within
0.5 % in the median over their points; whole layers and what a step takes besides, which the host paces, took 3 to 10 % longer.
"""

from __future__ import annotations

from collections import Counter
from math import ceil
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from dbstore import JsonObject
from dooly.catalog import PASSES, latencies_of, passes_of, record_counts
from dooly.measure._adaptive import MIN_POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy.typing as npt

    from dbstore import Record, Store
    from dooly.catalog import Key

    LogRatios = Callable[[Key, JsonObject, Sequence[float]], npt.NDArray[np.float64]]
    """Tells how far what an operation took at a point, time by time, lies from its closed forms."""

_CHANCE = 0.05
"""How likely a level that stands is taken for one that moved, for each operation."""
_LEAST_FREEDOM = 4
"""Degrees of freedom from which on differences tell how they scatter."""
CHECKED = 0.25
"""Share of an operation's points that are measured a second time to see whether its level stands."""


class Passes:
    """What each pass found of some operations at their points."""

    def __init__(
        self,
        points: Mapping[Key, Collection[JsonObject]],
        counts: Mapping[Key, Counter[JsonObject]],
        latencies_ns: Mapping[Key, Mapping[JsonObject, float]],
        calm_ns: Mapping[Key, Mapping[JsonObject, Sequence[float]]],
        target: float,
    ) -> None:
        """Take what a store knows.

        Args:
            points: The points of each operation that count.
            counts: How many records that count there are of each point.
            latencies_ns: What an operation takes at a point, in nanoseconds.
            calm_ns: What passes that nothing disturbed found there, in nanoseconds, the first one first.
            target: Relative error at which an operation's sweep ends, within which a level stands.
        """
        self._points, self._target = points, target
        self.counts = {key: Counter(counts.get(key, {})) for key in points}
        # What has disturbed records alone is measured again, and tells nothing before.
        self.latencies_ns: dict[Key, dict[JsonObject, float]] = {
            key: {point: ns for point, ns in latencies_ns.get(key, {}).items() if times[point] and point in points[key]}
            for key, times in self.counts.items()
        }
        self._calm_ns: dict[Key, dict[JsonObject, list[float]]] = {
            key: {point: list(calm_ns[key][point]) for point in known if point in calm_ns.get(key, {})}
            for key, known in self.latencies_ns.items()
        }

    @classmethod
    def of_store(cls, store: Store, environment: str, points: Mapping[Key, Collection[JsonObject]], target: float) -> Passes:
        """Return what a store knows of operations in an environment."""
        counts = {key: record_counts(store, key[0], environment) for key in points}
        latencies_ns = {key: latencies_of(store, key[0], environment) for key in points}
        return cls(points, counts, latencies_ns, {key: passes_of(store, key[0], environment) for key in points}, target)

    def told(self, record: Record) -> tuple[Key, ...]:
        """Take in a record, and return the operations that it is of.

        A disturbed one tells nothing where there is another; a point that cannot be run any more is not measured again.
        """
        point = JsonObject(record.point)
        keys = tuple(key for key, points in self._points.items() if key[0] == record.signature and point in points)
        for key in keys:
            self.counts[key][point] += 1
            calm_ns = self._calm_ns[key]
            if record.infeasible is not None:
                self.latencies_ns[key].pop(point, None)
                calm_ns.pop(point, None)
            elif record.attributes.get("spoiled"):
                self.latencies_ns[key].setdefault(point, record.median_ns)
            else:
                calm_ns.setdefault(point, []).append(record.median_ns)
                self.latencies_ns[key][point] = mean(calm_ns[point])
        return keys

    def levels(self, log_ratios: LogRatios | None) -> dict[str, bool | None]:
        """Tell of each signature whether its level stands; None where too few points tell.

        A level counts as moved where later passes found more or less than the first by more than the target, on average over the
        points that they measured, and by more than a mean of so many comes out by chance once in twenty times (Student's t). How
        points scatter about the means of their operations is told by all operations together, since each has few. Less than that
        is not told apart from noise, and counts as standing.

        Args:
            log_ratios: How far latencies lie from the closed forms; None where that is not known yet.
        """
        signatures = dict.fromkeys(signature for signature, *_ in self.counts)
        if log_ratios is None:
            return dict.fromkeys(signatures)
        moved = {name: self._moved(name, log_ratios) for name in signatures}
        by_chance = _by_chance(list(moved.values()))
        return {
            name: None
            if not len(found) or len(found) < num_checked(len(self._times(name)))
            else bool(abs(found.mean()) <= max(self._target, by_chance / np.sqrt(len(found))))
            for name, found in moved.items()
        }

    def lacking(self, number: int, log_ratios: LogRatios | None) -> Counter[str]:
        """Return how many points of each signature a pass after the first is to measure, as far as that is known.

        A check that was disturbed, or could not be run, tells nothing, and another point is measured in its place.
        """
        lacking: Counter[str] = Counter()
        for signature, stands in self.levels(log_ratios).items():
            times = self._times(signature)
            left = sum(count <= number for count in times.values())
            if stands is False:
                lacking[signature] = left
            elif number == 1:
                lacking[signature] = min(left, num_checked(len(times)) - len(self._again(signature)))
        return +lacking

    def num_again(self, log_ratios: LogRatios | None) -> int:
        """Return how many records the passes after the first want, as far as that is known."""
        return sum(self.lacking(number, log_ratios).total() for number in range(1, PASSES))

    def _moved(self, signature: str, log_ratios: LogRatios) -> npt.NDArray[np.float64]:
        """Return how far later passes were above the first at points measured again, in logarithms, shape (num_points,)."""
        logs = [log_ratios(key, point, took) for point, (key, took) in self._again(signature).items()]
        return np.array([np.mean(later) - first for first, *later in logs])

    def _again(self, signature: str) -> dict[JsonObject, tuple[Key, list[float]]]:
        """Return what passes that nothing disturbed found at points that they measured twice or more, with the operation."""
        keys = [key for key in self.counts if key[0] == signature]
        return {point: (key, took) for key in keys for point, took in self._calm_ns[key].items() if len(took) > 1}

    def _times(self, signature: str) -> dict[JsonObject, int]:
        """Return how often each feasible point of a signature was measured."""
        keys = [key for key in self.counts if key[0] == signature]
        return {point: self.counts[key][point] for key in keys for point in self.latencies_ns[key]}


def _by_chance(moved: Sequence[npt.NDArray[np.float64]]) -> float:
    """Return how far from 0 a difference comes out by chance, by those of all operations, each of shape (num_points,).

    A mean of several does so by that over the root of their number. Where too few tell, it is 0: the target alone decides.
    """
    from scipy.special import stdtrit

    away = np.concatenate([np.empty(0), *(found - found.mean() for found in moved if len(found))])
    freedom = len(away) - sum(1 for found in moved if len(found))
    if freedom < _LEAST_FREEDOM:
        return 0.0
    return float(stdtrit(freedom, 1 - _CHANCE / 2) * np.sqrt(np.sum(away**2) / freedom))


def num_checked(num_points: int) -> int:
    """Return how many of an operation's points are measured twice to see whether its level stands."""
    return min(num_points, max(MIN_POINTS, ceil(CHECKED * num_points)))
