"""An adaptive sweep of many operations at once: each place measures several of them, and the next is worth most a second.

A place is what is run to measure: a batch of an engine, or a forward of a plain module. Each operation has a point there, and
several places may share it. Corners come first: they bound what the records are good for, and tell the device's rates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dooly.measure._adaptive import MIN_POINTS, Knowledge, Outlook, outlook
from dooly.predict import Points, Rates, lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    import numpy.typing as npt

    from dbstore import JsonObject
    from dooly.predict import Sweep
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Latencies = Mapping[JsonObject, float]
    """Nanoseconds by point."""


@dataclass(frozen=True, slots=True)
class Known:
    """An operation that is not to be measured, but whose records tell of its family."""

    operation: TracedOperation
    """The operation."""
    latency_ns: Latencies
    """What it took."""


@dataclass
class Sampler:
    """Proposes what to measure next, and is told what it took.

    The rates of the roofline are those that were known when it was made, so that what is told later is told on the same scale.
    """

    operations: Mapping[str, TracedOperation]
    """The operations to measure, by signature."""
    places: Sequence[Mapping[str, JsonObject]]
    """The point of each operation at each place, by signature."""
    measured: Mapping[str, Latencies]
    """What was measured of each operation before, by signature."""
    others: Sequence[Known]
    """Operations of the same families."""
    target: float
    """Median relative error at which an operation's sweep ends."""
    _sweeps: dict[str, Sweep] = field(default_factory=dict, init=False)
    _rows: dict[str, dict[JsonObject, int]] = field(default_factory=dict, init=False)
    _done: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict, init=False)
    _knowledge: dict[tuple[object, ...], Knowledge] = field(default_factory=dict, init=False)
    _centres: dict[tuple[object, ...], float] = field(default_factory=dict, init=False)
    _outlooks: dict[str, Outlook] = field(default_factory=dict, init=False)
    _infeasible: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        """Lay the sweeps out, and take in what is known."""
        self._rows = {
            signature: {point: row for row, point in enumerate(dict.fromkeys(place[signature] for place in self.places))}
            for signature in self.operations
        }
        own: list[tuple[TracedOperation, Any]] = [(self.operations[s], list(rows)) for s, rows in self._rows.items()]
        beside: list[tuple[TracedOperation, Any]] = [(known.operation, list(known.latency_ns)) for known in self.others]
        before = [(self.operations[s], list(found), np.array(list(found.values()))) for s, found in self.measured.items()]
        around = [(known.operation, list(known.latency_ns), np.array(list(known.latency_ns.values()))) for known in self.others]
        laid = lay_out(own + beside, Rates.reached(before + around))
        self._sweeps = dict(zip(self._rows, laid, strict=False))
        self._done = {signature: np.zeros(len(rows), dtype=bool) for signature, rows in self._rows.items()}
        for known, sweep in zip(self.others, laid[len(own) :], strict=True):
            self._learn(sweep, np.arange(len(sweep.points)), np.array(list(known.latency_ns.values())))
        for signature, found in self.measured.items():
            self._take(signature, {point: ns for point, ns in found.items() if point in self._rows[signature]})

    def told(self, latencies: Mapping[str, Latencies]) -> None:
        """Take in what was measured at a place, by signature."""
        for signature, found in latencies.items():
            self._take(signature, found)

    def refused(self, place: int) -> None:
        """Take in that a place cannot be measured."""
        self._infeasible.add(place)

    def next(self, cost_s: Callable[[int], float]) -> tuple[int, tuple[str, ...]] | None:
        """Return the place to measure next with the operations to measure there; None where all sweeps may end.

        Args:
            cost_s: Seconds that measuring a place takes.
        """
        open_ = self.unfinished()
        best, best_worth = None, 0.0
        for number, place in enumerate(self.places):
            if number in self._infeasible:
                continue
            wanted = tuple(s for s in open_ if not self._done[s][self._rows[s][place[s]]])
            worth = sum(float(self._outlook(s).gains[self._rows[s][place[s]]]) for s in wanted) / cost_s(number)
            if wanted and worth > best_worth:
                best, best_worth = (number, wanted), worth
        return best

    def unfinished(self) -> tuple[str, ...]:
        """Return the operations whose sweeps go on, by signature."""
        return tuple(s for s in self.operations if not self._done[s].all() and not self._is_known(s))

    def error(self) -> float:
        """Return the median relative error expected of the operation that is known least."""
        return max((self._outlook(s).error.median for s in self.operations), default=0.0)

    def errors(self) -> dict[str, float]:
        """Return the median relative error that is expected of each operation, by signature."""
        return {s: self._outlook(s).error.median for s in self.operations}

    def _is_known(self, signature: str) -> bool:
        enough = min(MIN_POINTS, len(self._done[signature]))
        return bool(self._done[signature].sum() >= enough) and self._outlook(signature).error.is_within(self.target)

    def _outlook(self, signature: str) -> Outlook:
        if signature not in self._outlooks:
            sweep = self._sweeps[signature]
            start = Knowledge.nothing(sweep.points.coordinates.shape[1])
            self._outlooks[signature] = outlook(self._knowledge.get(sweep.family, start), sweep.points)
        return self._outlooks[signature]

    def _take(self, signature: str, found: Latencies) -> None:
        rows = np.array([self._rows[signature][point] for point in found], dtype=np.int64)
        self._learn(self._sweeps[signature], rows, np.array(list(found.values())))
        self._done[signature][rows] = True

    def _learn(self, sweep: Sweep, rows: npt.NDArray[np.int64], latency_ns: Floats) -> None:
        logs = np.log(np.maximum(latency_ns, 1.0) / sweep.roofline_ns[rows])
        if not len(logs):
            return
        centre = self._centres.setdefault(sweep.family, float(np.mean(logs)))
        knowledge = self._knowledge.get(sweep.family, Knowledge.nothing(sweep.points.coordinates.shape[1]))
        for row, log in zip(rows, logs - centre, strict=True):
            knowledge = knowledge.told(Points(sweep.points.coordinates[[row]], sweep.points.operations[[row]]), float(log))
        self._knowledge[sweep.family] = knowledge
        for signature, other in self._sweeps.items():
            if other.family == sweep.family:
                self._outlooks.pop(signature, None)
