"""What lies between the points of an adaptive sweep, by the process of the operation's family, for a regressor to learn from.

A sweep that ends early leaves points of the grid out because their family tells them well enough. Regressors, which price batches
in microseconds, are then fitted to both: what was measured, and what the process says of the rest. To judge them, measured points
are held out in folds: each fold's are told, like the rest, by a process that does not know them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dooly.catalog import medians, point_of
from dooly.predict._family_process import FamilyProcess, Parameters, Points
from dooly.predict._sweep import Rates, lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dbstore import JsonObject, Record
    from dooly.batch import Batch
    from dooly.catalog import Known
    from dooly.predict._sweep import Sweep
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_FOLDS = 5
_MISFIT = 0.05
"""Relative error that a regressor of base and trees is taken to have where points are known: a few percent, whatever they are."""
_SPARSE = 0.75
"""Share of the grid's points below which an operation's own are filled up."""
_LEAST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latency at all points of an operation, measured or told."""

    latency_ns: Floats
    """Nanoseconds, shape (num_points,)."""
    importance: Floats
    """How far a regressor is off a measured point over how far it is off this one: 1 of measured points, less of others, shape
    (num_points,)."""
    held: Ints
    """Places of the points that were measured, but are told as if not; none outside of folds."""


@dataclass(frozen=True, slots=True)
class Filled:
    """An operation's points, measured and filled up."""

    points: tuple[JsonObject, ...]
    """The points, those measured first."""
    num_measured: int
    """How many were measured."""
    whole: Latencies
    """All that is known of them."""
    folds: tuple[Latencies, ...]
    """The same without a part of the measured points each; every one is held once."""


def fill(
    operations: Sequence[TracedOperation],
    records: Mapping[str, Sequence[Record]],
    batches: Sequence[Batch],
    others: Sequence[Known] = (),
) -> dict[str, Filled]:
    """Return by signature the operations whose sweeps were sparse, filled up; those with hardly a point stay as they are.

    Args:
        operations: Operations of a model.
        records: Feasible records of each, by signature.
        batches: The grid's batches, whose points are to be known.
        others: Operations of other models that tell of the families of these, as they told when the sweeps ended.
    """
    own = {op.signature: op for op in operations}
    measured: dict[str, tuple[list[Any], Floats]] = {signature: medians(records[signature]) for signature in own}
    lacking: dict[str, list[Any]] = {}
    for signature, operation in own.items():
        points = set(measured[signature][0])
        wanted = dict.fromkeys(point_of(operation, batch) for batch in batches)
        left = [point for point in wanted if point not in points]
        is_sparse = len(wanted) - len(left) < _SPARSE * len(wanted) and len(points) >= _LEAST_POINTS
        lacking[signature] = left if is_sparse else []
    if not any(lacking.values()):
        return {}
    for known in others:
        own[known.operation.signature], lacking[known.operation.signature] = known.operation, []
        measured[known.operation.signature] = (list(known.latency_ns), np.array(list(known.latency_ns.values())))
    rates = Rates.reached([(op, *measured[signature]) for signature, op in own.items()])
    laid = lay_out([(op, [*measured[signature][0], *lacking[signature]]) for signature, op in own.items()], rates)
    families: dict[tuple[object, ...], list[tuple[str, Sweep]]] = defaultdict(list)
    for signature, sweep in zip(own, laid, strict=True):
        families[sweep.family].append((signature, sweep))
    found: dict[str, Filled] = {}
    for members in families.values():
        if any(lacking[signature] for signature, _ in members):
            found |= _filled(members, measured, lacking)
    return found


def _filled(
    members: Sequence[tuple[str, Sweep]], measured: Mapping[str, tuple[list[Any], Floats]], lacking: Mapping[str, list[Any]]
) -> dict[str, Filled]:
    """Fill up the operations of one family."""
    known = Points.joined([sweep.points.at(np.arange(len(measured[signature][0]))) for signature, sweep in members])
    logs = np.concatenate([_logs(sweep, measured[signature][1]) for signature, sweep in members])
    fold_of = _folds(known.operations)
    whole = _Process.of(Parameters.unknown(known.coordinates.shape[1]), known, logs)
    without = []
    for fold in np.unique(fold_of):
        rest = np.flatnonzero(fold_of != fold)
        without.append((fold, _Process.of(whole.process.parameters, known.at(rest), logs[rest])))
    found = {}
    for signature, sweep in members:
        points, latency_ns = measured[signature]
        if not lacking[signature]:
            continue
        own = fold_of[known.operations == sweep.points.operations[0]]
        folds = [process.told(sweep, latency_ns, np.flatnonzero(own == fold)) for fold, process in without if (own == fold).any()]
        told = whole.told(sweep, latency_ns, np.arange(0))
        found[signature] = Filled((*points, *lacking[signature]), len(points), told, tuple(folds))
    return found


class _Process(NamedTuple):
    """A family's process around the mean of what it was fitted to."""

    process: FamilyProcess
    centre: float

    @classmethod
    def of(cls, start: Parameters, known: Points, logs: Floats) -> _Process:
        """Fit the process to points."""
        centre = float(np.mean(logs))
        return cls(FamilyProcess(start, known, logs - centre).refitted(), centre)

    def told(self, sweep: Sweep, measured_ns: Floats, held: Ints) -> Latencies:
        """Return the latency at all points of an operation, told where it was not measured and where that is held out."""
        places = np.concatenate([held, np.arange(len(measured_ns), len(sweep.points))])
        mean, covariance = self.process.predict(sweep.points.at(places))
        latency_ns, importance = np.ones(len(sweep.points)), np.ones(len(sweep.points))
        latency_ns[: len(measured_ns)] = measured_ns
        latency_ns[places] = np.exp(mean + self.centre) * sweep.roofline_ns[places]
        known = self.process.parameters.rough**2 + _MISFIT**2
        importance[places] = np.sqrt(known / (known + np.maximum(np.diag(covariance), 0)))
        return Latencies(latency_ns, importance, held)


def _logs(sweep: Sweep, latency_ns: Floats) -> Floats:
    """Return the logarithm of the ratio of what was measured, the first points of a sweep, to its roofline."""
    return np.asarray(np.log(np.maximum(latency_ns, 1.0) / sweep.roofline_ns[: len(latency_ns)]))


def _folds(operations: Ints) -> Ints:
    """Return the fold of each point, at random and even within each operation, given the operations, shape (num_points,)."""
    rng, fold_of = np.random.default_rng(0), np.zeros(len(operations), dtype=np.int64)
    for operation in np.unique(operations):
        own = operations == operation
        fold_of[own] = rng.permutation(np.count_nonzero(own)) % _FOLDS
    return fold_of
