"""What lies between the points of an adaptive sweep, by the process of the operation's family, for a regressor to learn from.

A sweep that ends early leaves points of the grid out because their family tells them well enough. Regressors, which price batches
in microseconds, are then fitted to both: what was measured, and what the process says of the rest. Their error is the process's
own, over measured points that are left out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.catalog import medians, point_of
from dooly.predict._family_process import FamilyProcess, Parameters, Points
from dooly.predict._sweep import Rates, lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dbstore import JsonObject, Record
    from dooly.batch import Batch
    from dooly.predict._sweep import Sweep
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]

_SPARSE = 0.75
"""Share of the grid's points below which an operation's own are filled up."""
_LEAST_POINTS = 3


@dataclass(frozen=True, slots=True)
class Filled:
    """An operation's points, measured and filled up."""

    points: tuple[JsonObject, ...]
    """The points, those measured first."""
    latency_ns: Floats
    """Latency at each, shape (num_points,)."""
    num_measured: int
    """How many were measured."""
    relative_error: float
    """Median relative error of what was measured, each point predicted by the others."""


def fill(
    operations: Sequence[TracedOperation], records: Mapping[str, Sequence[Record]], batches: Sequence[Batch]
) -> dict[str, Filled]:
    """Return by signature the operations whose sweeps were sparse, filled up; those with hardly a point stay as they are.

    Args:
        operations: Operations of a model.
        records: Feasible records of each, by signature.
        batches: The grid's batches, whose points are to be known.
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
    known: list[Points] = []
    logs: list[Floats] = []
    for signature, sweep in members:
        latency_ns = np.maximum(measured[signature][1], 1.0)
        known.append(sweep.points.at(np.arange(len(latency_ns))))
        logs.append(np.log(latency_ns / sweep.roofline_ns[: len(latency_ns)]))
    centre = float(np.mean(np.concatenate(logs)))
    every = Points(np.concatenate([p.coordinates for p in known]), np.concatenate([p.operations for p in known]))
    start = Parameters.unknown(every.coordinates.shape[1])
    process = FamilyProcess(start, every, np.concatenate(logs) - centre).refitted()
    away, _ = process.left_out()
    found = {}
    for signature, sweep in members:
        points, latency_ns = measured[signature]
        rest = np.arange(len(points), len(sweep.points))
        if not len(rest):
            continue
        mean, _ = process.predict(sweep.points.at(rest))
        told = np.exp(mean + centre) * sweep.roofline_ns[rest]
        error = float(np.median(np.abs(np.expm1(away[np.isin(every.operations, sweep.points.operations[:1])]))))
        everything = np.concatenate([latency_ns, told])
        found[signature] = Filled((*points, *lacking[signature]), everything, len(points), error)
    return found
