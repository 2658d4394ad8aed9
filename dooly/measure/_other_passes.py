"""Where the passes after the first measure: at the cheapest places of points drawn by chance, and at all points of what moved."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from random import Random
from typing import TYPE_CHECKING

from dooly.catalog import PASSES

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dbstore import JsonObject
    from dooly.catalog import Key
    from dooly.measure._passes import LogRatios, Passes
    from dooly.measure._places import Places


def places_again(passes: Passes, places: Places, log_ratios: LogRatios | None) -> list[tuple[int, int, tuple[Key, ...]]]:
    """Return the passes after the first that are known to be wanted: number, place, and the operations to measure there.

    What shows whether levels stand comes first: a point drawn by chance, at the cheapest place that has it, and whatever else is
    to be checked and has a point there; then another. All points of operations whose levels moved are then covered by places that
    measure most a second (the greedy cover of Chvatal, 1979), since several may share one.
    """
    found, rng = [], Random(0)  # noqa: S311 - an order of work
    levels = passes.levels(log_ratios)
    for number in range(1, PASSES):
        lacking = passes.lacking(number, log_ratios)
        due = _due(passes, places, number, lacking)
        if unsure := {name for name, _ in due if levels[name] is None}:
            due = {point: keys for point, keys in due.items() if point[0] in unsure}
        while due:
            where = min(due[rng.choice(list(due))], key=places.costs.at) if unsure else _most_a_second(places, due)
            here = {point: keys[where] for point, keys in due.items() if where in keys}
            found.append((number, where, tuple(here.values())))
            lacking = lacking - Counter(name for name, _ in here)
            due = {point: keys for point, keys in due.items() if point not in here and lacking[point[0]]}
        if unsure:
            break
    return found


def _due(passes: Passes, places: Places, number: int, lacking: Mapping[str, int]) -> dict[tuple[str, JsonObject], dict[int, Key]]:
    """Return the points that lack a pass, with the open places that have them and the operation that has it there."""
    due: dict[tuple[str, JsonObject], dict[int, Key]] = {}
    for key, points in places.of.items():
        known, counts = passes.latencies_ns[key], passes.counts[key]
        for point in points if lacking[key[0]] else ():
            if 0 < counts[point] <= number and point in known and (found := places.open_at(key, point)):
                due.setdefault((key[0], point), {}).update(dict.fromkeys(found, key))
    return due


def _most_a_second(places: Places, due: Mapping[tuple[str, JsonObject], Collection[int]]) -> int:
    """Return the place that measures most points a second."""
    counts = Counter(chain.from_iterable(due.values()))
    return max(counts, key=lambda place: counts[place] / places.costs.at(place))
