"""The records that stand behind an operation: how many there are at each point, which were feasible, and their medians."""

from __future__ import annotations

import logging
import math
from collections import Counter
from operator import itemgetter
from statistics import mean, median, pstdev
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import JsonObject, RecordNotFoundError
from dooly.errors import MissingOperationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from dbstore import Environment, Record, Store
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]


PASSES = 3
"""How often a point is measured at most if nothing disturbs it, in passes spread over the run: machines drift within minutes."""
_LOGGER = logging.getLogger("dooly.catalog")
_MANY_DISTURBED = 0.1
"""Share of points that something disturbed every time from which on it is worth a warning."""
_NO_PASS = -1
"""Number of the pass of records that tell none, as those of other tools."""
MOST_ATTEMPTS = 2 * PASSES
"""How often a point was measured from which on its disturbed records count too; a run that began before may add some."""


def record_counts(store: Store, signature: str, environment: str) -> Counter[JsonObject]:
    """Return how many records an operation has at each point that count: those that nothing disturbed.

    A point that was measured `MOST_ATTEMPTS` times has all that it may have, disturbed or not.
    """
    if not store.points(signature, environment):
        return Counter()
    tried: Counter[JsonObject] = Counter()
    calm: Counter[JsonObject] = Counter()
    for record in store.read(signature, environment):
        point = JsonObject(record.point)
        tried[point] += 1
        calm[point] += not record.attributes.get("spoiled")
    return +Counter({point: max(calm[point], PASSES * (count >= MOST_ATTEMPTS)) for point, count in tried.items()})


def feasible_records(
    store: Store, operation: TracedOperation, environment: Environment, place: str, remedies: tuple[str, str]
) -> tuple[Record, ...]:
    """Return the feasible records of an operation.

    Args:
        store: An open store.
        operation: The operation.
        environment: Where it was measured.
        place: How messages spell that.
        remedies: What to do where it was not measured, and where no point was feasible.

    Raises:
        MissingOperationError: There are none.
    """
    name = f"operation {operation.module or operation.name} ({operation.signature})"
    try:
        records = store.read(operation.signature, environment.digest)
    except RecordNotFoundError as error:
        raise MissingOperationError(f"{name}: not measured on {place}; {remedies[0]}") from error
    feasible = tuple(r for r in records if r.infeasible is None)
    if not feasible:
        reason = records[0].infeasible
        raise MissingOperationError(f"{name}: no point of it could be measured on {environment.device} ({reason}); {remedies[1]}")
    return feasible


def medians(records: Sequence[Record]) -> tuple[list[Any], Floats]:
    """Return the points of records, each once, with the mean of its passes' medians.

    Passes that are known to have been disturbed count only where a point has no other. The slowest of the others counts too: on a
    machine whose speed comes and goes, an engine meets its slow minutes as well, and is not to be told faster than it is.
    """
    passes = _passes(records)
    return list(passes), np.array([mean(_latencies(found)) for found in passes.values()])


def pass_medians(records: Sequence[Record]) -> Floats:
    """Return what each pass found at each point of `medians`, in the same order, shape (num_points, num_passes).

    NaN is where a pass has no record. Of several that a point has of one pass, as of several runs, each is a pass by itself.
    """
    points = _passes(records)
    counted = []
    for found in points.values():
        times: Counter[int] = Counter()
        named = {}
        for number, median_ns in found:
            named[number, times[number]] = median_ns
            times[number] += 1
        counted.append(named)
    columns = {name: column for column, name in enumerate(sorted({name for named in counted for name in named}))}
    table = np.full((len(points), len(columns)), np.nan)
    for row, named in zip(table, counted, strict=True):
        row[[columns[name] for name in named]] = list(named.values())
    return table


def latencies_of(store: Store, signature: str, environment: str) -> dict[JsonObject, float]:
    """Return what an operation took at each point that was feasible, in nanoseconds."""
    return {point: mean(_latencies(found)) for point, found in _passes(_feasible(store, signature, environment)).items()}


def passes_of(store: Store, signature: str, environment: str) -> dict[JsonObject, list[float]]:
    """Return what each pass that nothing disturbed found at each point, in nanoseconds, the first pass first."""
    calm = [record for record in _feasible(store, signature, environment) if not record.attributes.get("spoiled")]
    return {point: _latencies(sorted(found, key=itemgetter(0))) for point, found in _passes(calm).items()}


def _feasible(store: Store, signature: str, environment: str) -> list[Record]:
    try:
        return [record for record in store.read(signature, environment) if record.infeasible is None]
    except RecordNotFoundError:
        return []


def repeatability(records: Sequence[Record]) -> float:
    """Return how far passes differ from their mean at a point: median over points, relative.

    Where no point was measured in two passes, nothing is known of it, and the result is infinite.
    """
    points = map(_latencies, _passes(records).values())
    spreads = [pstdev(found) / mean(found) for found in points if len(found) > 1 and mean(found)]
    return median(spreads) if spreads else math.inf


def count_disturbed(records: Sequence[Record]) -> tuple[int, int]:
    """Return at how many points something disturbed every pass, and how many points there are."""
    points = {record.point for record in records}
    return len(points - {record.point for record in records if not record.attributes.get("spoiled")}), len(points)


def warn_if_disturbed(place: str, groups: Iterable[Sequence[Record]]) -> None:
    """Warn in one line where other work disturbed many of the points that an answer stands on.

    Args:
        place: What was measured.
        groups: The records of its operations, one operation a group.
    """
    disturbed, points = map(sum, zip(*map(count_disturbed, groups), strict=True))
    if disturbed > _MANY_DISTURBED * points:
        _LOGGER.warning(
            "%s: other work on the machine disturbed %d of %d measured points each time, so predictions may be far off; measure "
            "into a new store while nothing else runs",
            *(place, disturbed, points),
        )


def _latencies(found: Sequence[tuple[int, float]]) -> list[float]:
    return [median_ns for _, median_ns in found]


def _passes(records: Sequence[Record]) -> dict[Any, list[tuple[int, float]]]:
    """Return by point the numbers and medians of its passes, of those that nothing disturbed where there are any."""
    passes: dict[Any, list[tuple[int, float]]] = {}
    calm = {record.point for record in records if not record.attributes.get("spoiled")}
    for record in records:
        if record.point not in calm or not record.attributes.get("spoiled"):
            number = record.attributes.get("pass")
            passes.setdefault(record.point, []).append((_NO_PASS if number is None else int(str(number)), record.median_ns))
    return passes
