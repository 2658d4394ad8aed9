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
from dooly.catalog import PASSES
from dooly.measure._adaptive import MIN_POINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy.typing as npt

    from dbstore import Record
    from dooly.catalog import Key

    LogRatios = Callable[[Key, JsonObject, Sequence[float]], npt.NDArray[np.float64]]
    """Tells how far what an operation took at a point, time by time, lies from its closed forms."""

_CHECK = 2
"""Passes in which a level is told."""
CHECKED = 0.25
"""Share of an operation's points that are measured a second time to see whether its level stands."""


class Passes:
    """What each pass found of some operations at their points."""

    def __init__(
        self,
        points: Mapping[Key, Collection[JsonObject]],
        counts: Mapping[Key, Counter[JsonObject]],
        found: Mapping[Key, Mapping[JsonObject, Sequence[float]]],
        target: float,
    ) -> None:
        """Take what a store knows.

        Args:
            points: The points of each operation that count.
            counts: How many records that count there are of each operation's points.
            found: What passes found there, in nanoseconds, the first one first.
            target: Relative error at which an operation's sweep ends, within which a level stands.
        """
        self._points = points
        self.counts = {key: Counter(counts.get(key, {})) for key in points}
        # What has disturbed records alone is measured again, and tells nothing before.
        self.found: dict[Key, dict[JsonObject, list[float]]] = {
            key: {point: list(took) for point, took in found.get(key, {}).items() if times[point] and point in points[key]}
            for key, times in self.counts.items()
        }
        self._target = target

    def told(self, record: Record) -> tuple[Key, ...]:
        """Take in a record, and return the operations that it is of.

        A disturbed one tells nothing where there is another; a point that cannot be run any more is not measured again.
        """
        point = JsonObject(record.point)
        keys = tuple(key for key, points in self._points.items() if key[0] == record.signature and point in points)
        for key in keys:
            self.counts[key][point] += 1
            if record.infeasible is not None:
                self.found[key].pop(point, None)
            elif not (record.attributes.get("spoiled") and self.found[key].get(point)):
                self.found[key].setdefault(point, []).append(record.median_ns)
        return keys

    def means_ns(self) -> dict[Key, dict[JsonObject, float]]:
        """Return what each operation takes at its points, in nanoseconds: the mean of its passes."""
        return {key: {point: mean(took) for point, took in of.items()} for key, of in self.found.items()}

    def level_stands(self, signature: str, log_ratios: LogRatios | None) -> bool | None:
        """Tell whether later passes found what the first did, to within the target on average; None where too few points tell.

        What was measured in a third pass had moved, and is not judged anew half way through its passes.

        Args:
            signature: The operation's.
            log_ratios: How far latencies lie from the closed forms; None where that is not known yet.
        """
        keys = [key for key in self.counts if key[0] == signature]
        again = {point: (key, took) for key in keys for point, took in self.found[key].items() if len(took) > 1}
        if any(len(took) > _CHECK for _, took in again.values()):
            return False
        if log_ratios is None or not again or len(again) < num_checked(len(self._times(signature))):
            return None
        logs = [log_ratios(key, point, took) for point, (key, took) in again.items()]
        return bool(abs(np.mean([second - first for first, second in logs])) <= self._target)

    def lacking(self, number: int, log_ratios: LogRatios | None) -> Counter[str]:
        """Return how many points of each signature a pass after the first is to measure, as far as that is known."""
        lacking: Counter[str] = Counter()
        for signature in dict.fromkeys(signature for signature, *_ in self.counts):
            times = self._times(signature)
            wanted = 0 if number > 1 else num_checked(len(times))
            if self.level_stands(signature, log_ratios) is False:
                wanted = len(times)
            lacking[signature] = wanted - sum(count > number for count in times.values())
        return +lacking

    def num_again(self, log_ratios: LogRatios | None) -> int:
        """Return how many records the passes after the first want, as far as that is known."""
        return sum(self.lacking(number, log_ratios).total() for number in range(1, PASSES))

    def _times(self, signature: str) -> dict[JsonObject, int]:
        """Return how often each feasible point of a signature was measured."""
        keys = [key for key in self.counts if key[0] == signature]
        return {point: self.counts[key][point] for key in keys for point in self.found[key]}


def num_checked(num_points: int) -> int:
    """Return how many of an operation's points are measured twice to see whether its level stands."""
    return min(num_points, max(MIN_POINTS, ceil(CHECKED * num_points)))
