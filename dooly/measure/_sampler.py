"""An adaptive sweep of many operations at once: each place measures several of them, and the next is worth most a second.

A place is what is run to measure: a batch of an engine, or a forward of a plain module. Each operation has a point there, and
several places may share it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from dooly.measure._adaptive import MIN_POINTS, SLACK, TAIL, ExpectedError, Knowledge, expected_error, gains
from dooly.measure._wholes import over_parts
from dooly.predict import Points, Rates, lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Mapping, Sequence

    import numpy.typing as npt

    from dbstore import JsonObject
    from dooly.catalog import Key, Known
    from dooly.predict import Sweep
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Latencies = Mapping[Any, float]
    """Nanoseconds by point."""

AnyKey = TypeVar("AnyKey", bound="Hashable")

_RUN_SLACK = 0.4
"""`slack` of what an engine or a module runs. Chosen on whole grids that were measured: of Llama 3.1 8B on an H200, by
`benchmarks/profiling_h200.py`, where sweeps took 10.8 s, 14.4 at a slack of 0.2 and 8.5 at 0.5, and operations were 2.6, 2.6 and
2.8 % off where nobody measured, before corners left no gaps; and of two small models on a restless CPU, by
`benchmarks/profiling_replayed.py`."""
_RUN_FITTED_FROM = 6
"""`fitted_from` of what an engine or a module runs: there operations of one family are measured at the same few corners first, of
which the roofline's rates are taken, so that they tell next to nothing of what lies between. Chosen on the grid of Llama 3.1 8B
on an H200, by `benchmarks/profiling_h200.py`: products were 7 to 15 % off after three points each, and 2 to 5 % after seven,
before corners left no gaps."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected of an operation's sweep."""

    error: ExpectedError
    """The error at points that are not measured."""
    gains: Floats
    """How much measuring each point is expected to lower the variance over the sweeps of its family, shape (num_points,)."""
    latency_ns: float
    """What it takes on average over its sweep, in nanoseconds."""
    judged_ns: float
    """What its error is a share of, on average: its latency, or of a step's rest that with the closed forms that it is beside."""


@dataclass
class Sampler(Generic[AnyKey]):
    """Proposes what to measure next, and is told what it took.

    The rates of the roofline are those that were known when it was made, so that what is told later is told on the same scale.
    """

    sweeps: Mapping[AnyKey, Sweep]
    """The operations to measure, by key: their points in the order in which they first come in `places`."""
    places: Sequence[Mapping[AnyKey, Hashable]]
    """The point of each operation at each place, by key; of the operations that are measured there."""
    measured: Mapping[AnyKey, Latencies]
    """What was measured of each operation before, by key."""
    others: Sequence[tuple[Sweep, Floats]]
    """Points of other operations of the same families, and what they took in nanoseconds, shape (num_points,)."""
    target: float
    """Median relative error at which an operation's sweep ends."""
    slack: float = SLACK
    """How far above its floor the error of a sweep that misses the target must be for the sweep to go on, relative."""
    fitted_from: int = 1
    """Points of one operation of a family from which on how the family behaves is fitted; before it is believed."""
    closed: Collection[int] = ()
    """Places that cannot be run, by number; more may become known."""
    _rows: dict[AnyKey, dict[Hashable, int]] = field(default_factory=dict, init=False)
    _done: dict[AnyKey, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False)
    _feasible: dict[AnyKey, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False)
    _delayed: set[tuple[AnyKey, int]] = field(default_factory=set, init=False)
    _knowledge: dict[tuple[object, ...], Knowledge] = field(default_factory=dict, init=False)
    _centres: dict[tuple[object, ...], float] = field(default_factory=dict, init=False)
    _outlooks: dict[AnyKey, Outlook] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Take in what is known."""
        self._rows = {key: _rows_of(key, self.places) for key in self.sweeps}
        self._done = {key: np.zeros(len(rows), dtype=bool) for key, rows in self._rows.items()}
        self._feasible = {key: np.ones(len(rows), dtype=bool) for key, rows in self._rows.items()}
        told = [(sweep, np.arange(len(sweep.points)), latency_ns) for sweep, latency_ns in self.others]
        for key, found in self.measured.items():
            own = {self._rows[key][point]: ns for point, ns in found.items() if point in self._rows[key]}
            self._done[key][list(own)] = True
            told.append((self.sweeps[key], np.array(list(own), dtype=np.int64), np.array(list(own.values()))))
        for family in {sweep.family: None for sweep, _, _ in told}:
            self._learn([part for part in told if part[0].family == family])

    def told(self, key: AnyKey, point: Hashable, latency_ns: float | None) -> None:
        """Take in what an operation took at a point; None of one that cannot be measured, by which nothing is judged."""
        row = self._rows[key].get(point)
        if row is None or self._done[key][row]:
            return
        self._done[key][row] = True
        if latency_ns is not None:
            self._learn([(self.sweeps[key], np.array([row]), np.array([latency_ns]))])
            return
        self._feasible[key][row] = False
        self._forget(self.sweeps[key])

    def log_ratios(self, key: AnyKey, point: Hashable, latency_ns: Sequence[float]) -> Floats:
        """Return the logarithm of the ratio to its closed forms of what an operation took at a point, shape (num_times,)."""
        return self.sweeps[key].logs(np.array([self._rows[key][point]]), np.array(latency_ns))

    def delayed(self, key: AnyKey, point: Hashable) -> None:
        """Take in that what an operation took at a point is told later: it is not proposed meanwhile."""
        if (row := self._rows[key].get(point)) is not None:
            self._delayed.add((key, row))

    def next(self, cost_s: Callable[[int], float]) -> tuple[int, tuple[AnyKey, ...]] | None:
        """Return the place to measure next with the operations to measure there; None where all sweeps may end.

        Args:
            cost_s: Seconds that measuring a place takes.
        """
        open_ = self.unfinished()
        best, best_worth = None, 0.0
        for number, place in enumerate(self.places):
            if number in self.closed:
                continue
            wanted = tuple(k for k in open_ if k in place and self._may_ask(k, self._rows[k][place[k]]))
            worth = sum(float(self._outlook(k).gains[self._rows[k][place[k]]]) for k in wanted) / cost_s(number)
            if wanted and worth > best_worth:
                best, best_worth = (number, wanted), worth
        return best

    def is_doubtful(self, key: AnyKey, point: Hashable) -> bool:
        """Tell whether an operation may be asked for at a point, and is known there worse than nine in ten points are to be.

        Standard deviations count as they are: surprises tell of points amid others, not of what lies beyond all of them.
        """
        sweep, row = self.sweeps[key], self._rows[key][point]
        if not self._may_ask(key, row):
            return False
        knowledge = self._known(sweep.family, sweep.points)
        _, variance = knowledge.process.predict(sweep.points.at(np.array([row])))
        deviation = float(np.sqrt(max(variance[0, 0], 0) + knowledge.process.parameters.rough**2))
        return deviation * NormalDist().inv_cdf(0.75) > TAIL * self.target

    def imagined(self, first: Sequence[tuple[int, tuple[AnyKey, ...]]] = ()) -> Counter[AnyKey]:
        """Return how many points each sweep would still take if each lay just where it is predicted; nothing stays of it.

        Args:
            first: Places that are measured before any is chosen, with the operations that are measured there.
        """
        kept = self._done, self._knowledge, self._outlooks
        self._done = {key: done.copy() for key, done in self._done.items()}
        self._knowledge, self._outlooks = dict(self._knowledge), dict(self._outlooks)
        counts: Counter[AnyKey] = Counter()
        ahead = deque(first)
        try:
            while (found := ahead.popleft() if ahead else self.next(lambda _place: 1.0)) is not None:
                place, keys = found
                counts.update(keys)
                for key in keys:
                    self._imagine(key, self._rows[key][self.places[place][key]])
        finally:
            self._done, self._knowledge, self._outlooks = kept
        return counts

    def told_by_family(self) -> tuple[AnyKey, ...]:
        """Return the operations that have too few points of their own, but whose families tell them within the target."""
        few = (key for key in self.unfinished() if self._done[key].sum() < MIN_POINTS)
        return tuple(key for key in few if self._outlook(key).error.is_within(self.target, self.slack))

    def _imagine(self, key: AnyKey, row: int) -> None:
        sweep = self.sweeps[key]
        knowledge = self._known(sweep.family, sweep.points)
        self._knowledge[sweep.family] = knowledge.imagined(sweep.points.at(np.array([row])))
        self._done[key][row] = True
        self._forget(sweep)

    def unfinished(self) -> tuple[AnyKey, ...]:
        """Return the operations whose sweeps go on, by key."""
        return tuple(k for k in self.sweeps if not self._done[k].all() and not self._is_known(k))

    def error(self, counts: Mapping[AnyKey, int] | None = None) -> float:
        """Return the relative error expected of a step: that of each operation where nobody measured it, by the time it takes.

        Args:
            counts: How often a step runs each operation, 0 of one whose time others make up; None where it runs each once.
        """
        runs = {key: 1 if counts is None else counts[key] for key in self.sweeps}
        total_ns = sum(count * self._outlook(key).latency_ns for key, count in runs.items())
        off_ns = sum(count * self._outlook(key).judged_ns * self._outlook(key).error.median for key, count in runs.items())
        return off_ns / total_ns if total_ns else 0.0

    def errors(self) -> dict[AnyKey, ExpectedError]:
        """Return the relative error that is expected of each, a step's rest beside the closed forms of its operations."""
        return {k: self._outlook(k).error for k in self.sweeps}

    def _may_ask(self, key: AnyKey, row: int) -> bool:
        return not self._done[key][row] and (key, row) not in self._delayed

    def _is_known(self, key: AnyKey) -> bool:
        return self._has_enough(key) and self._outlook(key).error.is_within(self.target, self.slack)

    def _has_enough(self, key: AnyKey) -> bool:
        sweep, feasible = self.sweeps[key], self._feasible[key]
        if not self._known(sweep.family, sweep.points).may_be_fitted:
            return False
        return bool((self._done[key] & feasible).sum() >= min(MIN_POINTS, feasible.sum()))

    def _outlook(self, key: AnyKey) -> Outlook:
        if key not in self._outlooks:
            self._look_out(self.sweeps[key].family)
        return self._outlooks[key]

    def _look_out(self, family: tuple[object, ...]) -> None:
        """Find out what is expected of all sweeps of a family: a point of one tells of the others too."""
        keys = [key for key, sweep in self.sweeps.items() if sweep.family == family]
        points = Points.joined([self.sweeps[key].points for key in keys])
        knowledge = self._known(family, points)
        mean, covariance = knowledge.process.predict(points)
        took = np.concatenate([self.sweeps[key].roofline_ns for key in keys]) * np.exp(mean + self._centres.get(family, 0.0))
        rough, weights = knowledge.process.parameters.rough, np.zeros(len(points))
        ends = np.cumsum([len(self._done[key]) for key in keys])
        places = {key: slice(end - len(self._done[key]), end) for key, end in zip(keys, ends, strict=True)}
        errors = {}
        for key, own in places.items():
            feasible, block = self._feasible[key], covariance[own, own]
            left = ~self._done[key][feasible]
            errors[key] = expected_error(knowledge.surprises, block[np.ix_(feasible, feasible)], rough, left)
            if not (self._has_enough(key) and errors[key].is_within(self.target, self.slack)):
                weights[own] = feasible / max(1, feasible.sum())
        found = gains(covariance, rough, weights)
        for key, own in places.items():
            judged_ns, sweep = float(took[own].mean()), self.sweeps[key]
            latency_ns = max(0.0, judged_ns - float(sweep.roofline_ns.mean())) if sweep.is_rest else judged_ns
            self._outlooks[key] = Outlook(errors[key], found[own], latency_ns, judged_ns)

    def _learn(self, told: Sequence[tuple[Sweep, npt.NDArray[np.int64], Floats]]) -> None:
        """Take in what sweeps of one family took at some of their points, in nanoseconds."""
        told = [part for part in told if len(part[1])]
        if not told:
            return
        family, points = told[0][0].family, Points.joined([sweep.points.at(rows) for sweep, rows, _ in told])
        logs = np.concatenate([sweep.logs(rows, ns) for sweep, rows, ns in told])
        centre = self._centres.setdefault(family, float(np.mean(logs)))
        self._knowledge[family] = self._known(family, points).told(points, logs - centre)
        self._forget(told[0][0])

    def _known(self, family: tuple[object, ...], points: Points) -> Knowledge:
        """Return what is known of a family, given some of its points."""
        if (known := self._knowledge.get(family)) is not None:
            return known
        most = max((len(self._rows[key]) for key, sweep in self.sweeps.items() if sweep.family == family), default=1)
        return Knowledge.nothing(points.coordinates.shape[1], min(self.fitted_from, most))

    def _forget(self, sweep: Sweep) -> None:
        """Drop what was expected of a family before it learnt more."""
        for key, other in self.sweeps.items():
            if other.family == sweep.family:
                self._outlooks.pop(key, None)


def sampler_of(  # noqa: PLR0913, PLR0917 - what is to be measured, what is known, and how far to go
    operations: Mapping[Key, TracedOperation],
    parts: Sequence[TracedOperation],
    places: Sequence[Mapping[Key, JsonObject]],
    measured: Mapping[Key, Latencies],
    others: Sequence[Known],
    target: float,
    *,
    closed: Collection[int] = (),
) -> Sampler[Key]:
    """Return the sampler of traced operations, over the roofline of what is known.

    Args:
        operations: The operations to measure, by key.
        parts: All that layers, modules and steps are made of, whoever measures it.
        places: The point of each operation at each place, by key.
        measured: What was measured of each operation before, by key.
        others: Operations of the same families.
        target: Median relative error at which an operation's sweep ends.
        closed: Places that cannot be run.
    """
    own: list[tuple[TracedOperation, Any]] = [(operation, list(_rows_of(key, places))) for key, operation in operations.items()]
    beside: list[tuple[TracedOperation, Any]] = [(known.operation, list(known.latency_ns)) for known in others]
    took = [np.array(list(known.latency_ns.values())) for known in others]
    before: list[Any] = [(operations[key], list(found), np.array(list(found.values()))) for key, found in measured.items()]
    rates = Rates.reached(before + [(*known, ns) for known, ns in zip(beside, took, strict=True)])
    laid = lay_out(own + beside, rates)
    sweeps = over_parts(operations, parts, places, dict(zip(operations, laid, strict=False)), rates)
    beyond = list(zip(laid[len(own) :], took, strict=True))
    return Sampler(sweeps, places, measured, beyond, target, _RUN_SLACK, _RUN_FITTED_FROM, closed)


def _rows_of(key: AnyKey, places: Sequence[Mapping[AnyKey, Hashable]]) -> dict[Hashable, int]:
    """Return the points of an operation in the order in which they first come in places, each with its number."""
    return {point: row for row, point in enumerate(dict.fromkeys(place[key] for place in places if key in place))}
