"""What adaptive sweeps would have run, had they run when whole grids were measured: the machine's drift stays out of it.

`python benchmarks/profiling_cost.py --device cpu --replay --state DIR MODEL...` draws sweeps from the records that
`profiling_measured.py` left of each model alone, pass by pass, one model after the other into a store of its own. A batch counts
with all the seconds that it took there, though a sweep may ask for a part of its operations, and with those of an operation that
was measured at another batch of the same point: Dooly's seconds are at most these. Errors are against the mean of the passes:
what the machine did in between is in them.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from measured_grid import MeasuredGrid
from profiling_measured import LIMITS, quantiles, step_errors

from dbstore import Store
from dooly.catalog import PASSES, STEP, measurement_batches
from dooly.engines import find_model
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dbstore import Environment, Record
    from dooly.batch import Batch
    from dooly.engines import ModelSource, ServingConfig
    from dooly.measure.engine._profiler import Task


def replay(names: Sequence[str], state: Path, serving: ServingConfig) -> dict[str, Any]:
    """Return of each model what its grid and its sweep took, and errors of the steps and operations that the sweep left out."""
    into, rows = Store.open("memory://replayed", "a"), []
    for name in names:
        model = find_model(name)
        grid = CostedGrid(Store.open(state / f"alone-{model.name}"), model, serving, None, into)
        grid.sweep()
        if grid.num_refused:
            raise SystemExit(f"error: the grid of {model.name} lacks {grid.num_refused} batches of today's")
        whole = [(number, batch) for number in range(PASSES) for batch in measurement_batches(serving)]
        errors = step_errors(model, grid.store, into, serving)
        of_operations = [grid.errors(fitted, into) for fitted in load_latency_model(into, model, serving).operations]
        (median, p90), operations = quantiles(errors), quantiles(np.concatenate(of_operations))
        row = {
            "model": model.name,
            "batches": [len(whole), grid.num_asked],
            "seconds": [sum(grid.seconds(*run) for run in whole), grid.asked_s],
            "steps": len(errors),
            "median": median,
            "p90": p90,
            "operations": operations,
        }
        print(row, flush=True)
        rows.append(row)
    limits = {limit: getattr(serving, limit) for limit in LIMITS}
    return {"schema": 1, "device": "cpu", "dtype": serving.dtype, **limits, "models": rows}


class CostedGrid(MeasuredGrid):
    """Tells besides what the batches took that a sweep asks for."""

    def __init__(
        self, store: Store, model: ModelSource, serving: ServingConfig, environment: Environment | None, into: Store
    ) -> None:
        """Take the grid, as `MeasuredGrid` does."""
        super().__init__(store, model, serving, environment, into)
        (self._step,) = (op for op in self.traced.operations if op.stage == "engine" and op.name == STEP)
        self._seconds: Counter[Any] = Counter()
        for known in self.known.values():
            for record in (record for record in known.values() if record.infeasible is None):
                self._seconds[record.attributes["order"]] += record.attributes["wall_s"]
        self.num_asked, self.asked_s = 0, 0.0
        """Batches that were asked for, and what they took."""

    def measure(self, task: Task) -> Sequence[Record]:
        """Return what the grid holds of a task, in its pass."""
        found = super().measure(task)
        here = self._order(task.number, task.batch)
        run = (record.attributes for record in found if record.infeasible is None)
        elsewhere = (attributes["wall_s"] for attributes in run if attributes["order"] != here)
        self.num_asked += 1
        self.asked_s += self.seconds(task.number, task.batch) + sum(elsewhere)
        return found

    def seconds(self, number: int, batch: Batch) -> float:
        """Return what a batch took in a pass, with all operations that were measured there; 0 of one that could not be run."""
        return float(self._seconds[self._order(number, batch)])

    def _order(self, number: int, batch: Batch) -> Any:  # noqa: ANN401 - an attribute of a record
        return self.record(self._step, number, batch).attributes.get("order")
