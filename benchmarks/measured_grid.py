"""A whole grid that was measured, in all passes, from which a sweep draws what it asks for.

A record says what its batch took, in equal parts for all that was measured there. Whoever asks for fewer operations of a batch
pays for more than their parts, since the batch runs all the same, and for less than all of it: a sweep's seconds lie between.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from interval_coverage import batches_at

from dooly.catalog import latencies_of, point_of, profiled_model, write_described, write_traced
from dooly.measure import TARGET_ERROR
from dooly.measure._tasks import InfeasibleBatchError, infeasible_record, run_tasks
from dooly.measure.engine._adaptive import adaptive_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dbstore import Environment, Record, Store
    from dooly.batch import Batch
    from dooly.engines import ModelSource, ServingConfig
    from dooly.measure.engine._profiler import Task
    from dooly.predict import FittedOperation
    from dooly.tracing import TracedOperation


class MeasuredGrid:
    """Answers the tasks of a sweep with the records of a grid, each as if nothing had disturbed it."""

    def __init__(
        self, store: Store, model: ModelSource, serving: ServingConfig, environment: Environment | None, into: Store
    ) -> None:
        """Take the grid.

        Args:
            store: Holds its records.
            model: What it is of.
            serving: The limits of the engine.
            environment: Where it was measured; None for this machine.
            into: The store that a sweep fills.
        """
        self.store, self.model, self.serving, self.into = store, model, serving, into
        self.traced, self.environment = profiled_model(store, model, serving, environment)
        self.known: dict[str, dict[tuple[Any, Any], Record]] = {}
        """What the grid holds of a signature at a point in a pass."""
        for name in {operation.signature for operation in self.traced.operations}:
            # Of a point that was disturbed in a pass, the calm record comes last and stays.
            records = sorted(store.read(name, self.environment.digest), key=lambda r: not r.attributes.get("spoiled"))
            calm = [replace(record, attributes={**record.attributes, "spoiled": False}) for record in records]
            self.known[name] = {(record.point, record.attributes["pass"]): record for record in calm}
        self._whole_s: Counter[Any] = Counter()
        for record in self._feasible():
            self._whole_s[_run_of(record)] += record.attributes["wall_s"]
        self.num_refused, self.num_asked, self.asked_s = 0, 0, 0.0
        """Tasks that the grid could not answer, tasks that it answered, and what their whole batches took."""
        self.describe(into)

    def describe(self, into: Store) -> None:
        """Let a store know the model and where it was measured."""
        write_described(into, self.environment, self.traced)
        write_traced(into, self.model, self.serving, self.traced, self.environment)

    def sweep(self) -> None:
        """Draw what `dooly profile` would measure."""
        plan = adaptive_plan(self.traced.operations, self.serving, self.into, self.environment.digest, TARGET_ERROR)
        run_tasks(self, plan, None, lambda _done, _left: None)

    def measure(self, task: Task) -> Sequence[Record]:
        """Return what the grid holds of a task, in its pass; what it lacks could not be run.

        Of what it measured at other batches of the same points the parts count, and of the batch of most of it the whole.

        Raises:
            InfeasibleBatchError: The grid holds no such batch.
        """
        found = [self.record(operation, task.number, task.batch) for operation in task.missing]
        self.into.write(*found)
        runs = Counter(_run_of(record) for record in found if record.infeasible is None)
        if runs:
            (batch, _), *_ = runs.most_common(1)
            self.num_asked += 1
            self.asked_s += self._whole_s[batch] + sum(run[1] * count for run, count in runs.items() if run != batch)
        return found

    def give_up(self, task: Task, reason: str) -> Sequence[Record]:
        """Return that a task cannot be run, and keep nothing of it."""
        self.num_refused += 1
        keys = [((op.signature, self.environment.digest), point_of(op, task.batch)) for op in task.missing]
        return [infeasible_record(key, point, task.number, reason) for key, point in keys]

    def compact(self) -> None:
        """Leave the store as it is."""

    @property
    def took_s(self) -> float:
        """What the grid took, in seconds, in all passes."""
        return float(sum(record.attributes["wall_s"] for record in self._feasible()))

    def _feasible(self) -> list[Any]:
        return [record for known in self.known.values() for record in known.values() if record.infeasible is None]

    def record(self, operation: TracedOperation, number: int, batch: Batch) -> Record:
        """Return what was measured of an operation at a batch in a pass.

        Raises:
            InfeasibleBatchError: The grid holds no such batch.
        """
        try:
            return self.known[operation.signature][point_of(operation, batch), number]
        except KeyError as error:
            raise InfeasibleBatchError(f"the grid lacks {batch} in pass {number}") from error

    def errors(self, fitted: FittedOperation, *held: Store) -> npt.NDArray[np.float64]:
        """Return an operation's relative errors where stores hold nothing of it, against the grid's mean; shape (num_points,)."""
        signature, environment = fitted.operation.signature, self.environment.digest
        took = latencies_of(self.store, signature, environment)
        known = set().union(*(latencies_of(store, signature, environment) for store in held))
        points: list[Any] = [point for point in took if point not in known]
        if not points:
            return np.empty(0)
        predicted_ns = fitted.latency.latency_ns(fitted.work, batches_at(fitted, points))
        return np.abs(predicted_ns / np.array([took[point] for point in points]) - 1)


def _run_of(record: Record) -> tuple[Any, float]:
    """Return what tells in which run of a batch a record was measured: its pass, and what each record of that batch took."""
    return record.attributes["pass"], float(str(record.attributes["wall_s"]))
