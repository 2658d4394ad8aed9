"""A plan that is made as it goes: corners first, then whatever is worth most, then the same points again where levels moved.

Corners bound what records are good for, and tell the device's rates. Attention and what an engine does around its operations are
measured there whatever is known, and so is all that no relative tells of; any other operation only where its sweep, once it may
end, leaves it in doubt there: the largest sizes cost most.

The first pass decides which points are measured. A machine may drift by more within minutes than a sweep's target, so the second
measures some of each operation's points again, at the cheapest places of points drawn by chance. Where an operation takes as
long as it did, that is all; others are measured again at all of their points, and once more where the second pass bears out the
first's checks. What a store holds already counts as measured.

A place that cannot be run is closed. Other places may have the same points of some operations, as short contexts have those of
linear layers: those are asked for next, the cheapest first. What no open place has is infeasible.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from dbstore import JsonObject
from dooly.catalog import PASSES, key_of
from dooly.measure._other_passes import places_again
from dooly.measure._passes import Passes, num_checked
from dooly.measure._places import Places
from dooly.measure._sampler import sampler_of
from dooly.measure._tasks import AnyTask, shuffled
from dooly.measure._wholes import is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np
    import numpy.typing as npt

    from dbstore import Record
    from dooly.catalog import Key, Known
    from dooly.measure._adaptive import ExpectedError
    from dooly.measure._passes import LogRatios
    from dooly.measure._sampler import Sampler
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    MakeTask = Callable[[int, int, Sequence[Key]], AnyTask]
    """Makes the task of a pass and a place, over operations by key."""

_MOST_DELAYED = 4
"""Tasks that wait to be measured again before they come first: what decides would else go on for long without them."""


@dataclass(frozen=True, slots=True)
class _Proposal(Generic[AnyTask]):
    task: AnyTask
    place: int
    keys: tuple[Key, ...]

    @property
    def number(self) -> int:
        return self.task.number

    @property
    def missing(self) -> Sequence[object]:
        return self.task.missing


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
    """Records that are wanted, if all points lie where they are predicted and no level moves."""
    is_most: bool = False
    """Whether it is the whole grid instead, all that could be wanted: of nothing known nothing tells how soon sweeps end."""


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
        self._operations, self._parts, self._make, self._target = operations, parts, make, target
        self._passes = passes
        self._others = others
        self.places = Places(places, operations, sizes)
        self._waiting: set[tuple[str, JsonObject]] = set()
        self._elsewhere: list[tuple[Key, JsonObject]] = []
        told = {known.operation.family for known in others if known.latency_ns}
        self._bounding = {key for key, op in operations.items() if _bounds(op) or op.family not in told}
        self._corners = [place for place in corners if self._lacking(place, self._bounding)]
        self._every_corner = tuple(corners)
        self._sampler: Sampler[Key] | None = None
        self._later: list[_Proposal[AnyTask]] | None = None
        self._number = 0
        self._proposed: list[_Proposal[AnyTask]] = []
        self._delayed: list[AnyTask] = []

    def next(self) -> AnyTask | None:
        """Return the next task; None at the end, and where a delayed task is to be told first."""
        if self._later is None and len(self._delayed) >= _MOST_DELAYED:
            return None
        if (first := self._next_elsewhere() or self._next_corner()) is not None:
            return self._proposing(first)
        if self._later is None:
            if self._sampler is None and self._delayed:
                return None  # corners tell the device's rates
            if (found := self.sampler.next(self.places.costs.at) or self._doubtful_corner()) is not None:
                return self._proposing(self._proposal(0, *found))
            if self._delayed:
                return None
            self._later = []
        ends = not self._later or self._later[-1].number > self._number
        if ends and not self._delayed:  # what a pass tells decides on the next
            self._later = self._other_passes()
            self._number = self._later[-1].number if self._later else self._number
        return None if not self._later or (ends and self._delayed) else self._proposing(self._later.pop())

    def delayed(self, task: AnyTask, /) -> None:
        """Take in that a task is told later: it is not proposed again, and nothing is learnt of it."""
        self._delayed.append(task)
        if task.number > 0:
            return
        proposal = self._proposed_as(task)
        waiting = self.places.points_at(proposal.place, proposal.keys)
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
        proposal = self._proposed_as(task)
        self._proposed.remove(proposal)
        if task.number > 0:
            return
        self._waiting -= self.places.points_at(proposal.place, proposal.keys)
        feasible = [record for record in records if record.infeasible is None]
        if feasible:
            self.places.costs.told(proposal.place, sum(float(str(record.attributes["wall_s"])) for record in feasible))

    def given_up(self, task: AnyTask, /) -> AnyTask:
        """Close the place of a task, and return the task with those operations alone whose points no open place has."""
        proposal = self._proposed_as(task)
        self.places.closed.add(proposal.place)
        if self._sampler is not None:
            self._tell_infeasible(self._sampler)
        points = self.places.points[proposal.place]
        lost = tuple(key for key in proposal.keys if self.places.have_lost(key[0], points[key]))
        if task.number == 0:
            self._elsewhere += [(key, points[key]) for key in proposal.keys if key not in lost]
        return self._proposal(task.number, proposal.place, lost).task

    def num_left(self) -> int:
        """Return how many records are still wanted, as far as is known: sweeps go on, and levels may have moved."""
        delayed = sum(len(task.missing) for task in self._delayed)
        if self._later or (self._later is not None and delayed):
            return delayed + sum(len(proposal.missing) for proposal in self._later)
        wanted = sum(len(keys) for _, keys in self._corners_left()) + delayed + len(self._elsewhere)
        at_corners = self._corners or (self._delayed and self._sampler is None)
        open_ = 0 if at_corners else len({*self.sampler.unfinished(), *self._doubted()})
        if not wanted + open_:
            return sum(len(proposal.missing) for proposal in self._other_passes())
        return wanted + open_ + self._passes.num_again(self._log_ratios)

    def forecast(self) -> Forecast:
        """Return what is left as far as it can be told before: how many operations are known, and how many records are wanted.

        Where nothing was measured, that is the whole grid.
        """
        if not self._others and not any(self._passes.latencies_ns.values()):
            points = {(key[0], place[key]) for place in self.places.points for key in self._operations}
            return Forecast(0, 0, len(self._operations), PASSES * len(points), is_most=True)
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
            self._sampler = sampler_of(
                self._operations, self._parts, self.places.points, took, self._others, self._target, closed=self.places.closed
            )
            self._tell_infeasible(self._sampler)
        return self._sampler

    @property
    def error(self) -> float | None:
        """Relative error expected of a step where nobody measured; None before the corners are measured."""
        counts: Counter[Key] = Counter()
        for part in self._parts:
            counts[key_of(part)] += 0 if is_whole(part) else part.count
        return None if self._sampler is None else self._sampler.error(counts)

    @property
    def known_least(self) -> tuple[str, ExpectedError] | None:
        """The operation of the largest expected error, by name, and that error; None before the corners are measured."""
        if self._sampler is None or not (errors := self._sampler.errors()):
            return None
        key = max(errors, key=lambda key: errors[key].median)
        return self._operations[key].name, errors[key]

    @property
    def _log_ratios(self) -> LogRatios | None:
        return None if self._sampler is None else self._sampler.log_ratios

    def _proposing(self, proposal: _Proposal[AnyTask]) -> AnyTask:
        self._proposed.append(proposal)
        return proposal.task

    def _proposal(self, number: int, place: int, keys: tuple[Key, ...]) -> _Proposal[AnyTask]:
        """Return a task of operations at a place; those of one signature and one point are measured once."""
        distinct = {(key[0], self.places.points[place][key]): key for key in reversed(keys)}
        return _Proposal(self._make(number, place, list(distinct.values())[::-1]), place, keys)

    def _proposed_as(self, task: AnyTask) -> _Proposal[AnyTask]:
        return next(proposal for proposal in self._proposed if proposal.task is task)

    def _next_corner(self) -> _Proposal[AnyTask] | None:
        """Return a task of what is measured at a corner whatever is known."""
        while self._corners:
            place = self._corners.pop()
            if keys := self._lacking(place, self._bounding):
                return self._proposal(0, place, keys)
        return None

    def _next_elsewhere(self) -> _Proposal[AnyTask] | None:
        """Return a task of what could not be run at one place and may be at another, the cheapest that has it."""
        while self._elsewhere:
            key, point = self._elsewhere[-1]
            if not (places := self.places.open_at(key, point)):
                self._elsewhere.pop()
                continue
            place = min(places, key=self.places.costs.at)
            here = {key for key, point in self._elsewhere if self.places.points[place][key] == point}
            self._elsewhere = [(key, point) for key, point in self._elsewhere if self.places.points[place][key] != point]
            if keys := self._lacking(place, here):
                return self._proposal(0, place, keys)
        return None

    def _tell_infeasible(self, sampler: Sampler[Key]) -> None:
        """Tell the sampler of points that could not be run, or that closed places alone have."""
        for key, points in self.places.of.items():
            known, counts = self._passes.latencies_ns[key], self._passes.counts[key]
            for point, places in points.items():
                if point not in known and (counts[point] or places <= self.places.closed):
                    sampler.told(key, point, None)

    def _lacking(self, place: int, keys: Collection[Key]) -> tuple[Key, ...]:
        """Return those of some operations that have no record of their point at an open place, and wait for none."""
        if place in self.places.closed:
            return ()
        points = self.places.points[place]
        lacking = (key for key in self._operations if key in keys and not self._passes.counts[key][points[key]])
        return tuple(key for key in lacking if (key[0], points[key]) not in self._waiting)

    def _corners_left(self) -> list[tuple[int, tuple[Key, ...]]]:
        """Return the corners measured whatever is known, with the operations that lack a record there, each point once."""
        left, planned = [], set()
        for place in self._corners:
            points = self.places.points[place]
            keys = tuple(key for key in self._lacking(place, self._bounding) if (key[0], points[key]) not in planned)
            planned |= self.places.points_at(place, keys)
            if keys:
                left.append((place, keys))
        return left

    def _doubted(self) -> set[Key]:
        """Return the operations that are in doubt at some corner."""
        corners = [self.places.points[place] for place in self._every_corner if place not in self.places.closed]
        return {key for key in self._operations if any(self.sampler.is_doubtful(key, points[key]) for points in corners)}

    def _doubtful_corner(self) -> tuple[int, tuple[Key, ...]] | None:
        """Return a corner with the operations that are in doubt there."""
        for place in self._every_corner:
            points = self.places.points[place]
            if place in self.places.closed:
                continue
            if keys := tuple(key for key in self._operations if self.sampler.is_doubtful(key, points[key])):
                return place, keys
        return None

    def _other_passes(self) -> list[_Proposal[AnyTask]]:
        """Return the tasks of the passes after the first that are known to be wanted, the last one first."""
        return shuffled([self._proposal(*again) for again in places_again(self._passes, self.places, self._log_ratios)])[::-1]


def _bounds(operation: TracedOperation) -> bool:
    """Tell whether how far an operation was measured bounds what a model is known for."""
    return operation.stage == "engine" or operation.depends_on_context
