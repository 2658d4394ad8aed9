"""Adaptive sweeps on an engine: its batches as places, their corners, and what a store knows of the operations' families."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.catalog import key_of, measured_most, measurement_batches, point_of, related_operations
from dooly.measure._adaptive_plan import AdaptivePlan
from dooly.measure._passes import Passes
from dooly.measure.engine._profiler import Task
from dooly.predict import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dbstore import Store
    from dooly.batch import Batch
    from dooly.catalog import Key, Known
    from dooly.engines import ServingConfig
    from dooly.tracing import TracedOperation


_ROUNDING = 1e-9
_APART = 4
"""Batches that are measured first have less than so many times as many tokens as the next smaller of them."""


def adaptive_plan(  # noqa: PLR0913 - what to measure, within what, what is known, and how far to go
    operations: tuple[TracedOperation, ...],
    serving: ServingConfig,
    store: Store,
    environment: str | None,
    target: float,
    *,
    parts: tuple[TracedOperation, ...] | None = None,
) -> AdaptivePlan[Task]:
    """Return the plan of adaptive sweeps over an engine's batches.

    Args:
        operations: The operations that one step runs.
        serving: The engine's limits, which bound the batches.
        store: What is known.
        environment: Where it was measured; None where nothing was.
        target: Median relative error at which an operation's sweep ends.
        parts: All that a step runs, where others measure some of it.
    """
    own = {key_of(operation): operation for operation in operations}
    batches = measurement_batches(serving)
    places = [{key: point_of(operation, batch) for key, operation in own.items()} for batch in batches]
    arrays = BatchArrays.of(batches)
    work = arrays.attention(None)
    sizes = np.column_stack([arrays.num_tokens, work.decode_kv_tokens, work.prefill_pairs]).astype(np.float64)
    points = {key: {place[key] for place in places} for key in own}
    passes = Passes(points, {}, {}, {}, target)
    others: list[Known] = []
    if environment is not None:
        passes = Passes.of_store(store, environment, points, target)
        others = measured_most(related_operations(operations, store, environment), store, environment)

    def make(number: int, place: int, keys: Sequence[Key]) -> Task:
        return Task(number, batches[place], tuple(own[key] for key in keys))

    parts = operations if parts is None else parts
    return AdaptivePlan(own, parts, places, sizes, corners(arrays, batches), passes, others, target, make)


def corners(arrays: BatchArrays, batches: Sequence[Batch]) -> tuple[int, ...]:
    """Return the batches that bound all others, and some between whose numbers of tokens lie less than a factor of 4 apart.

    Bounds are fewest tokens, and most tokens, requests, positions and query-key pairs. Into the widest gap between their numbers
    of tokens comes the first batch that is nearest to its middle, and so on: what bends there is told by nothing else so early.
    """
    work = arrays.attention(None)
    longest = (arrays.new + arrays.computed).max(axis=1)
    has_decodes = np.array([batch.num_new_requests < batch.num_reqs for batch in batches])
    most: list[npt.NDArray[Any]] = [
        -arrays.num_tokens,
        arrays.num_tokens,
        arrays.num_reqs,
        longest,
        np.where(has_decodes, longest, 0),
        work.decode_kv_tokens,
        work.prefill_pairs,
    ]
    bounds = dict.fromkeys(int(np.argmax(values)) for values in most)
    logs = np.log(arrays.num_tokens)
    return (*bounds, *chain.from_iterable(_between(*gap, logs) for gap in pairwise(np.unique(logs[list(bounds)]))))


def _between(below: float, above: float, logs: npt.NDArray[np.float64]) -> list[int]:
    """Return batches into a gap, by logarithms of their numbers of tokens, shape (num_batches,), and of those at its ends."""
    within = np.flatnonzero((logs > below) & (logs < above))
    if not len(within) or above - below < np.log(_APART) - _ROUNDING:
        return []
    middle = int(within[np.argmin(abs(logs[within] - (below + above) / 2))])
    return [middle, *_between(below, logs[middle], logs), *_between(logs[middle], above, logs)]


def seconds_a_record(store: Store, environments: set[str]) -> float | None:
    """Return what a record of some environments took to measure on average; None where there is none."""
    keys = [key for key in store.keys() if key[1] in environments]  # noqa: SIM118 - a store is no mapping
    took = [record.attributes.get("wall_s") for key in keys for record in store.read(*key)]
    seconds = [float(str(value)) for value in took if value is not None]
    return sum(seconds) / len(seconds) if seconds else None
