"""A plan that is made as it goes: corners first, then whatever is worth most, then the same points again where levels moved.

Corners bound what records are good for, and tell the device's rates. Attention and what an engine does around its operations are
measured there whatever is known, and so is all that no relative tells of; any other operation only where its sweep, once it may
end, leaves it in doubt there: the largest sizes cost most.

The first pass decides which points are measured. A machine may drift by more within minutes than a sweep's target, so the second
measures some of each operation's points again, at places drawn by chance. Where an operation takes as long as it did, that is
all; others are measured again at all of their points, in all passes. What a store holds already counts as measured.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Generic

from dbstore import JsonObject
from dooly.catalog import PASSES, key_of
from dooly.measure._passes import Passes, num_checked
from dooly.measure._place_costs import PlaceCosts
from dooly.measure._sampler import sampler_of
from dooly.measure._tasks import AnyTask, shuffled
from dooly.measure._wholes import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from dbstore import Record
    from dooly.catalog import Key, Known
    from dooly.measure._passes import LogRatios
    from dooly.measure._sampler import Sampler
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    MakeTask = Callable[[int, int, Sequence[Key]], AnyTask]
    """Makes the task of a pass and a place, over operations by key."""

_MOST_DELAYED = 4
"""Tasks that wait to be measured again before they come first: what decides would else go on for long without them."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is left to measure, before any of it is."""

    num_known: int
    """Operations whose own points tell them within the target."""
    num_by_family: int
    """Operations that their families tell within the target; a few points of each are measured all the same."""
    num_missing: int
    """Other operations."""
    num_wanted: int
    """Records that are wanted, if all points lie where they are predicted and no level moves; of nothing known, at most."""


class AdaptivePlan(Generic[AnyTask]):
    """Proposes the tasks of adaptive sweeps."""

    def __init__(  # noqa: PLR0913, PLR0917 - what is to be measured, what is known, and how far to go
        self,
        operations: Mapping[Key, TracedOperation],
        parts: Sequence[TracedOperation],
        places: Sequence[Mapping[Key, JsonObject]],
        sizes: Floats,
        corners: Sequence[int],
        passes: Passes,
        others: Sequence[Known],
        target: float,
        make: MakeTask[AnyTask],
    ) -> None:
        """Take what is to be measured and what is known.

        Args:
            operations: The operations, by key.
            parts: All that layers, modules and steps are made of, whoever measures it.
            places: The point of each operation at each place.
            sizes: Sizes of each place that its cost goes by, shape (num_places, num_sizes).
            corners: Places that bound all others.
            passes: What was measured of them.
            others: Operations of the same families.
            target: Median relative error at which an operation's sweep ends.
            make: Makes a task.
        """
        self._operations, self._parts, self._places, self._make, self._target = operations, parts, places, make, target
        self._passes = passes
        self._others = others
        self.costs = PlaceCosts(sizes)
        self._waiting: set[tuple[str, JsonObject]] = set()
        told = {known.operation.family for known in others if known.latency_ns}
        self._bounding = {key for key, op in operations.items() if _bounds(op) or op.family not in told}
        self._corners = [place for place in corners if self._lacking(place, self._bounding)]
        self._every_corner = tuple(corners)
        self._sampler: Sampler[Key] | None = None
        self._later: list[AnyTask] | None = None
        self._proposed: list[tuple[AnyTask, int, tuple[Key, ...]]] = []
        self._delayed: list[AnyTask] = []

    def next(self) -> AnyTask | None:
        """Return the next task; None at the end, and where a delayed task is to be told first."""
        if self._later is None and len(self._delayed) >= _MOST_DELAYED:
            return None
        while self._corners:
            place = self._corners.pop()
            if keys := self._lacking(place, self._bounding):
                return self._propose(place, keys)
        if self._later is None:
            if self._sampler is None and self._delayed:
                return None  # corners tell the device's rates
            if (found := self.sampler.next(self.costs.at) or self._doubtful_corner()) is not None:
                return self._propose(*found)
            if self._delayed:
                return None
            self._later = []
        if not self._later and not self._delayed:
            self._later = self._other_passes()
        return self._later.pop() if self._later else None

    def delayed(self, task: AnyTask, /) -> None:
        """Take in that a task is told later: it is not proposed again, and nothing is learnt of it."""
        self._delayed.append(task)
        if task.number > 0:
            return
        place, keys = next((place, keys) for proposed, place, keys in self._proposed if proposed is task)
        waiting = self._points_at(place, keys)
        self._waiting |= waiting
        if self._sampler is not None:
            for signature, point in waiting:
                for key in self._operations:
                    if key[0] == signature:
                        self._sampler.delayed(key, point)

    def told(self, task: AnyTask, records: Sequence[Record], /) -> None:
        """Take in the records of a task."""
        self._delayed = [other for other in self._delayed if other is not task]
        for record in records:
            for key in self._passes.told(record):
                if self._sampler is not None and task.number == 0:
                    self._sampler.told(key, JsonObject(record.point), record.median_ns if record.infeasible is None else None)
        if task.number > 0:
            return
        place, keys = next((place, keys) for proposed, place, keys in self._proposed if proposed is task)
        self._waiting -= self._points_at(place, keys)
        self._proposed = [other for other in self._proposed if other[0] is not task]
        feasible = [record for record in records if record.infeasible is None]
        if feasible:
            self.costs.told(place, sum(float(str(record.attributes["wall_s"])) for record in feasible))

    def num_left(self) -> int:
        """Return how many records are still wanted, as far as is known: sweeps go on, and levels may have moved."""
        delayed = sum(len(task.missing) for task in self._delayed)
        if self._later or (self._later is not None and delayed):
            return delayed + sum(len(task.missing) for task in self._later)
        wanted = sum(len(keys) for _, keys in self._corners_left()) + delayed
        at_corners = self._corners or (self._delayed and self._sampler is None)
        open_ = 0 if at_corners else len({*self.sampler.unfinished(), *self._doubted()})
        if not wanted + open_:
            return sum(len(task.missing) for task in self._other_passes())
        return wanted + open_ + self._passes.num_again(self._log_ratios)

    def forecast(self) -> Forecast:
        """Return what is left as far as it can be told before: how many operations are known, and how many records are wanted.

        Where nothing was measured, nothing tells how soon sweeps end, and the whole grid is what they take at most.
        """
        if not self._others and not any(self._passes.latencies_ns.values()):
            points = {(key, place[key]) for place in self._places for key in self._operations}
            return Forecast(0, 0, len(self._operations), PASSES * len(points))
        sampler = self.sampler
        missing, by_family = len(sampler.unfinished()), len(sampler.told_by_family())
        imagined = sampler.imagined(self._corners_left())
        wanted = self._passes.num_again(self._log_ratios) + sum(count + num_checked(count) for count in imagined.values())
        return Forecast(len(self._operations) - missing, by_family, missing - by_family, wanted)

    @property
    def sampler(self) -> Sampler[Key]:
        """What decides, once the corners are measured."""
        if self._sampler is None:
            took = self._passes.latencies_ns
            self._sampler = sampler_of(self._operations, self._parts, self._places, took, self._others, self._target)
            for key, counts in self._passes.counts.items():
                for point in counts.keys() - took[key].keys():
                    self._sampler.told(key, point, None)
        return self._sampler

    @property
    def error(self) -> float | None:
        """Relative error expected of a step where nobody measured; None before the corners are measured."""
        counts: Counter[Key] = Counter()
        for part in self._parts:
            counts[key_of(part)] += 0 if is_whole(part) else part.count
        return None if self._sampler is None else self._sampler.error(counts)

    @property
    def known_least(self) -> tuple[str, float] | None:
        """The operation of the largest expected error, by name, and that error; None before the corners are measured."""
        if self._sampler is None or not (errors := self._sampler.errors()):
            return None
        key = max(errors, key=errors.__getitem__)
        return self._operations[key].name, errors[key]

    @property
    def _log_ratios(self) -> LogRatios | None:
        return None if self._sampler is None else self._sampler.log_ratios

    def _propose(self, place: int, keys: tuple[Key, ...]) -> AnyTask:
        task = self._task(0, place, keys)
        self._proposed.append((task, place, keys))
        return task

    def _task(self, number: int, place: int, keys: Sequence[Key]) -> AnyTask:
        """Return a task of operations at a place; those of one signature and one point are measured once."""
        distinct = {(key[0], self._places[place][key]): key for key in reversed(keys)}
        return self._make(number, place, list(distinct.values())[::-1])

    def _lacking(self, place: int, keys: Collection[Key]) -> tuple[Key, ...]:
        """Return those of some operations that have no record of their point at a place, and wait for none."""
        points = self._places[place]
        lacking = (key for key in self._operations if key in keys and not self._passes.counts[key][points[key]])
        return tuple(key for key in lacking if (key[0], points[key]) not in self._waiting)

    def _points_at(self, place: int, keys: Collection[Key]) -> set[tuple[str, JsonObject]]:
        """Return the points of operations at a place, with their signatures: one may have several there."""
        return {(key[0], self._places[place][key]) for key in keys}

    def _corners_left(self) -> list[tuple[int, tuple[Key, ...]]]:
        """Return the corners measured whatever is known, with the operations that lack a record there, each point once."""
        left, planned = [], set()
        for place in self._corners:
            points = self._places[place]
            keys = tuple(key for key in self._lacking(place, self._bounding) if (key, points[key]) not in planned)
            planned |= {(key, points[key]) for key in keys}
            if keys:
                left.append((place, keys))
        return left

    def _doubted(self) -> set[Key]:
        """Return the operations that are in doubt at some corner."""
        corners = [self._places[place] for place in self._every_corner]
        return {key for key in self._operations if any(self.sampler.is_doubtful(key, points[key]) for points in corners)}

    def _doubtful_corner(self) -> tuple[int, tuple[Key, ...]] | None:
        """Return a corner with the operations that are in doubt there."""
        for place in self._every_corner:
            points = self._places[place]
            if keys := tuple(key for key in self._operations if self.sampler.is_doubtful(key, points[key])):
                return place, keys
        return None

    def _other_passes(self) -> list[AnyTask]:
        """Return the tasks of the passes after the first that are known to be wanted, the last one first.

        Points that show whether levels stand come first, at places drawn by chance. All points of operations whose levels moved
        are then covered by places that measure most a second (the greedy cover of Chvatal, 1979), since several may share one.
        """
        tasks, rng = [], Random(0)  # noqa: S311 - an order of work
        for number in range(1, PASSES):
            lacking = self._passes.lacking(number, self._log_ratios)
            told = {signature: self._passes.level_stands(signature, self._log_ratios) for signature in lacking}
            unsure = Counter({signature: lacking[signature] for signature, stands in told.items() if stands is None})
            lacking = unsure or lacking
            due = {place: keys for place in range(len(self._places)) if (keys := self._due(number, place, lacking))}
            sharing: dict[tuple[str, JsonObject], set[int]] = {}
            for place, keys in due.items():
                for again in self._points_at(place, keys):
                    sharing.setdefault(again, set()).add(place)
            while due:
                place = rng.choice(list(due)) if unsure else max(due, key=lambda place: len(due[place]) / self.costs.at(place))
                if not (keys := [key for key in due.pop(place) if lacking[key[0]]]):
                    continue
                tasks.append(self._task(number, place, keys))
                done = self._points_at(place, keys)
                lacking = lacking - Counter(signature for signature, _ in done)
                for other in {other for again in done for other in sharing[again]} & due.keys():
                    due[other] = [key for key in due[other] if (key[0], self._places[other][key]) not in done]
                    if not due[other]:
                        del due[other]
            if unsure:
                break
        return shuffled(tasks)[::-1]

    def _due(self, number: int, place: int, lacking: Mapping[str, int]) -> list[Key]:
        """Return the operations that lack a pass at a place's point; none where something cannot be run."""
        points = self._places[place]
        known = [key for key in self._operations if self._passes.counts[key][points[key]]]
        if any(points[key] not in self._passes.latencies_ns[key] for key in known):
            return []
        due = [key for key in known if lacking[key[0]] and self._passes.counts[key][points[key]] <= number]
        return list({(key[0], points[key]): key for key in reversed(due)}.values())[::-1]


def _bounds(operation: TracedOperation) -> bool:
    """Tell whether how far an operation was measured bounds what a model is known for."""
    return operation.stage == "engine" or operation.depends_on_context
