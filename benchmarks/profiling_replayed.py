"""What adaptive sweeps would have run, had they run when whole grids were measured: the machine's drift stays out of it.

`python benchmarks/profiling_cost.py --device cpu --replay --state DIR MODEL...` draws sweeps from the records that
`profiling_measured.py` left of each model alone, pass by pass, one model after the other into a store of its own. A batch counts
with all the seconds that it took there, though a sweep may ask for a part of its operations, and with those of an operation that
was measured at another batch of the same point: Dooly's seconds are at most these. Errors are against the mean of the passes:
what the machine did in between is in them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from interval_coverage import batches_at
from profiling_measured import LIMITS, quantiles, step_errors

from dbstore import Record, Store
from dooly.catalog import (
    PASSES,
    STEP,
    latencies_of,
    measurement_batches,
    point_of,
    profiled_model,
    write_described,
    write_traced,
)
from dooly.engines import find_model
from dooly.measure import TARGET_ERROR
from dooly.measure._tasks import run_tasks
from dooly.measure.engine._adaptive import adaptive_plan
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.batch import Batch
    from dooly.engines import ServingConfig
    from dooly.measure.engine._profiler import Task
    from dooly.predict import FittedOperation
    from dooly.tracing import TracedModel, TracedOperation


def replay(names: Sequence[str], state: Path, serving: ServingConfig) -> dict[str, Any]:
    """Return of each model what its grid and its sweep took, and errors of the steps and operations that the sweep left out."""
    into, rows = Store.open("memory://replayed", "a"), []
    for name in names:
        model = find_model(name)
        grid = Store.open(state / f"alone-{model.name}")
        traced, environment = profiled_model(grid, model, serving, None)
        write_described(into, environment, traced)
        write_traced(into, model, serving, traced, environment)
        measured = Grid(grid, traced, environment.digest, into)
        plan = adaptive_plan(traced.operations, serving, into, environment.digest, TARGET_ERROR)
        run_tasks(measured, plan, None, lambda _done, _left: None)
        whole = [(number, batch) for number in range(PASSES) for batch in measurement_batches(serving)]
        errors = step_errors(model, grid, into, serving)
        latency = load_latency_model(into, model, serving)
        of_operations = np.concatenate([operation_errors(fitted, grid, into) for fitted in latency.operations])
        (median, p90), operations = quantiles(errors), quantiles(of_operations)
        row = {
            "model": model.name,
            "batches": [len(whole), measured.num_asked],
            "seconds": [sum(measured.seconds(*run) for run in whole), measured.asked_s],
            "steps": len(errors),
            "median": median,
            "p90": p90,
            "operations": operations,
        }
        print(row, flush=True)
        rows.append(row)
    limits = {limit: getattr(serving, limit) for limit in LIMITS}
    return {"schema": 1, "device": "cpu", "dtype": serving.dtype, **limits, "models": rows}


def operation_errors(fitted: FittedOperation, grid: Store, into: Store) -> npt.NDArray[np.float64]:
    """Return an operation's relative errors at the points that its sweep left out, shape (num_points,)."""
    signature, (environment,) = fitted.operation.signature, grid.documents("environments")
    took, held = latencies_of(grid, signature, environment), latencies_of(into, signature, environment)
    points: list[Any] = [point for point in took if point not in held]
    if not points:
        return np.empty(0)
    predicted_ns = fitted.latency.latency_ns(fitted.work, batches_at(fitted, points))
    return np.abs(predicted_ns / np.array([took[point] for point in points]) - 1)


class Grid:
    """Answers tasks with what was measured of a whole grid."""

    def __init__(self, store: Store, traced: TracedModel, environment: str, into: Store) -> None:
        """Take the store of the grid, the model that it is of, and the store that a sweep fills."""
        self._into = into
        self._known: dict[str, dict[tuple[Any, Any], Record]] = {}
        self._seconds: Counter[Any] = Counter()
        (self._step,) = (op for op in traced.operations if op.stage == "engine" and op.name == STEP)
        for name in {operation.signature for operation in traced.operations}:
            records = sorted(store.read(name, environment), key=lambda record: not record.attributes["spoiled"])
            # Of a point that was disturbed in a pass, the calm record comes last and stays.
            self._known[name] = {(record.point, record.attributes["pass"]): record for record in records}
            for record in self._known[name].values():
                self._seconds[record.attributes["order"]] += record.attributes["wall_s"]
        self.num_asked, self.asked_s = 0, 0.0
        """Batches that were asked for, and what they took."""

    def measure(self, task: Task) -> Sequence[Record]:
        """Return what the grid holds of a task, in its pass."""
        found = [self._record(operation, task.number, task.batch) for operation in task.missing]
        here = self._record(self._step, task.number, task.batch).attributes["order"]
        elsewhere = (record.attributes["wall_s"] for record in found if record.attributes["order"] != here)
        self.num_asked += 1
        self.asked_s += self.seconds(task.number, task.batch) + sum(elsewhere)
        records = [replace(record, attributes={**record.attributes, "spoiled": False}) for record in found]
        self._into.write(*records)
        return records

    def give_up(self, task: Task, reason: str) -> Sequence[Record]:
        """Refuse: a grid holds all that could be run."""
        raise AssertionError(f"{task}: {reason}")

    def compact(self) -> None:
        """Leave the store as it is."""

    def seconds(self, number: int, batch: Batch) -> float:
        """Return what a batch took in a pass, with all operations that were measured there."""
        return float(self._seconds[self._record(self._step, number, batch).attributes["order"]])

    def _record(self, operation: TracedOperation, number: int, batch: Batch) -> Record:
        return self._known[operation.signature][point_of(operation, batch), number]
