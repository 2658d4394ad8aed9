"""What adaptive sweeps would have run, had they run when whole grids were measured: the machine's drift stays out of it.

`python benchmarks/profiling_cost.py --device cpu --replay --state DIR MODEL...` draws sweeps from the records that
`profiling_measured.py` left of each model alone, pass by pass, one model after the other into a store of its own. A batch counts
with all the seconds that it took there, though a sweep may ask for a part of its operations: Dooly's seconds are at most these.
Errors are against the mean of the passes: what the machine did in between is in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from measured_grid import MeasuredGrid
from profiling_measured import LIMITS, quantiles, step_errors

from dbstore import Store
from dooly.catalog import PASSES, measurement_batches
from dooly.engines import find_model
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dooly.engines import ServingConfig


def replay(names: Sequence[str], state: Path, serving: ServingConfig) -> dict[str, Any]:
    """Return of each model what its grid and its sweep took, and errors of the steps and operations that the sweep left out."""
    into, rows = Store.open("memory://replayed", "a"), []
    for name in names:
        model = find_model(name)
        grid = MeasuredGrid(Store.open(state / f"alone-{model.name}"), model, serving, None, into)
        grid.sweep()
        if grid.num_refused:
            raise SystemExit(f"error: the grid of {model.name} lacks {grid.num_refused} batches of today's")
        num_batches = PASSES * len(measurement_batches(serving))
        errors = step_errors(model, grid.store, into, serving)
        of_operations = [grid.errors(fitted, into) for fitted in load_latency_model(into, model, serving).operations]
        (median, p90), operations = quantiles(errors), quantiles(np.concatenate(of_operations))
        row = {
            "model": model.name,
            "batches": [num_batches, grid.num_asked],
            "seconds": [grid.took_s, grid.asked_s],
            "steps": len(errors),
            "median": median,
            "p90": p90,
            "operations": operations,
        }
        print(row, flush=True)
        rows.append(row)
    limits = {limit: getattr(serving, limit) for limit in LIMITS}
    return {"schema": 1, "device": "cpu", "dtype": serving.dtype, **limits, "models": rows}
