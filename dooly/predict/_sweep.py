"""The sweeps of operations as their families' processes see them: coordinates, and what the closed forms say of each point.

A point's coordinates are the logarithms of its sizes; of a product also how full the tiles are that kernels cut its rows into;
and the numbers of its configuration in which the operations of one family differ. Latency counts as the logarithm of its ratio to
a roofline at the rates that the device was seen to reach.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import batch_at, sizes_at
from dooly.predict._family_process import Points
from dooly.predict._features import BatchArrays
from dooly.predict._kinds import LinearLayer, kind_of
from dooly.predict._operation import OperationWork
from dooly.predict._sizes_behind import sizes_behind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    import numpy.typing as npt

    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    StorePoints = Sequence[Mapping[str, Any]]
    Measured = Sequence[tuple[TracedOperation, StorePoints, Floats]]
    """Operations with points and the latency at each, in nanoseconds."""

_TILES = (64, 128, 256)
_LEAST_NS = 500.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device was seen to reach: the ceilings of a roofline."""

    launch_ns: float
    """What the shortest operation takes."""
    flops_per_ns: float
    """Highest rate of floating-point operations."""
    bytes_per_ns: float
    """Highest rate of bytes moved."""

    @classmethod
    def reached(cls, measured: Measured) -> Rates:
        """Return the rates that measured points reach; 1 where none of them tells."""
        launch, flops_rate, bytes_rate = [_LEAST_NS], [0.0], [0.0]
        for operation, points, latency_ns in measured:
            if operation.stage != "engine" and len(points):
                flops, traffic = work_at(operation, points)
                took = np.maximum(latency_ns, _LEAST_NS)
                launch.append(float(took.min()))
                flops_rate.append(float((flops / took).max()))
                bytes_rate.append(float((traffic / took).max()))
        return cls(min(launch[1:] or launch), max(flops_rate) or 1.0, max(bytes_rate) or 1.0)

    def roofline_ns(self, flops: Floats, traffic: Floats) -> Floats:
        """Return the least time that work could take, in nanoseconds, shape (num_points,)."""
        return np.asarray(self.launch_ns + np.maximum(flops / self.flops_per_ns, traffic / self.bytes_per_ns))


@dataclass(frozen=True, slots=True)
class Sweep:
    """All points of one operation, as the process of its family sees them."""

    family: tuple[object, ...]
    """What names its family."""
    points: Points
    """The points, shape (num_points, num_coordinates)."""
    roofline_ns: Floats
    """What the closed forms say of each, shape (num_points,)."""
    is_rest: bool = False
    """Whether it takes what it takes on top of these, and is judged as a part of both."""

    def logs(self, rows: Ints, latency_ns: Floats) -> Floats:
        """Return the logarithm of the ratio to the closed forms at some of its points, shape (num_rows,) all."""
        closed_ns = self.roofline_ns[rows]
        return np.log(np.maximum(latency_ns + closed_ns if self.is_rest else latency_ns, 1.0) / closed_ns)


def lay_out(sweeps: Sequence[tuple[TracedOperation, StorePoints]], rates: Rates) -> tuple[Sweep, ...]:
    """Return operations with their points as their families' processes see them, in order.

    Args:
        sweeps: The operations, those whose points are only known included: what they differ in decides on coordinates.
        rates: What the device reaches.
    """
    members: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for place, (operation, _) in enumerate(sweeps):
        members[_family(operation)].append(place)
    found: dict[int, Sweep] = {}
    for family, places in members.items():
        numbers = np.array([sweeps[place][0].family_numbers for place in places], dtype=np.float64)
        telling = np.unique(np.log1p(np.abs(numbers[:, np.ptp(numbers, axis=0) > 0])), axis=1) if numbers.size else numbers
        for place, own in zip(places, telling, strict=True):
            operation, points = sweeps[place]
            sizes = coordinates_at(operation, points)
            coordinates = np.column_stack([sizes, np.tile(own, (len(sizes), 1))])
            roofline_ns = rates.roofline_ns(*work_at(operation, points))
            found[place] = Sweep(family, Points(coordinates, np.full(len(sizes), place)), roofline_ns)
    return tuple(found[place] for place in range(len(sweeps)))


def coordinates_at(operation: TracedOperation, points: StorePoints) -> Floats:
    """Return the coordinates that an operation's points have of themselves, shape (num_points, num_coordinates)."""
    if not (points and "batch" in points[0]):
        sizes = sizes_at(points, operation.request_dims)
        if isinstance(kind_of(operation), LinearLayer):
            rows = sizes[:, 0]
            filled = [np.ceil(rows / tile) * tile / rows for tile in _TILES]
            return np.column_stack([np.log(rows), *map(np.log, filled)])
        return np.log1p(sizes)
    batches = BatchArrays.of([batch_at(point) for point in points])
    work = batches.attention(OperationWork(operation).window)
    reads = (work.decode_kv_tokens, work.num_prefills, work.prefill_pairs, work.prefill_tokens)
    counts = (batches.num_reqs, batches.num_tokens) if operation.stage == "engine" else (work.num_decodes, work.decode_longest)
    return np.log1p(np.column_stack([*counts, *reads]).astype(np.float64))


def work_at(operation: TracedOperation, points: StorePoints) -> tuple[Floats, Floats]:
    """Return FLOPs and bytes of an operation at points, shape (num_points,) each; 0 of what an engine does beside operations."""
    if operation.stage == "engine":
        return np.zeros(len(points)), np.zeros(len(points))
    work = OperationWork(operation)
    if work.is_attention:
        return work.cost(BatchArrays.of([batch_at(point) for point in points]))
    sizes = sizes_behind(operation.request_dims, sizes_at(points, operation.request_dims))
    _, flops, traffic = work.roofline_terms(sizes, len(points)).T
    return flops, traffic


def _family(operation: TracedOperation) -> tuple[object, ...]:
    """Return what names an operation's family; one without is its own."""
    return (operation.family or operation.signature, len(operation.request_dims), len(operation.family_numbers))
