"""What profiling costs on this machine, for real: models one by one on whole grids, against one store and adaptive sweeps.

`python benchmarks/profiling_cost.py --device cpu --state DIR MODEL...` runs it. Each model is profiled alone into a store of its
own, at every point of the grid and in all passes, and then into one store with the others, to the target error. The state keeps
stores and seconds: what has ended is not run again, which would measure once more what was disturbed, and what was cut off is
refused, since nobody knows what it took. Errors are those of whole
steps at batches of which the adaptive store holds no step, against what the whole grid measured there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import Store
from dooly.catalog import STEP, latencies_of, measurement_batches, point_of, profiled_model
from dooly.engines import find_model
from dooly.measure import TARGET_ERROR, profile
from dooly.predict import load_latency_model
from dooly.tracing import layer_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dbstore import Environment
    from dooly.engines import ModelSource, ServingConfig


LIMITS = ("max_model_len", "max_num_batched_tokens", "max_num_seqs")
"""Settings of the engine that the grid goes by."""


def measure(names: Sequence[str], state: Path, serving: ServingConfig) -> dict[str, Any]:
    """Profile models both ways, and return the seconds of each with the errors of steps that the adaptive sweeps left out."""
    rows = []
    for name in names:
        model = find_model(name)
        alone = f"alone-{model.name}"
        alone_s = _profiled(model, state, alone, serving, 0.0)
        dooly_s = _profiled(model, state, "together", serving, TARGET_ERROR)
        errors = step_errors(model, Store.open(state / alone), Store.open(state / "together"), serving)
        median, p90 = quantiles(errors)
        row = {
            "model": model.name,
            "alone_s": alone_s,
            "dooly_s": dooly_s,
            "steps": len(errors),
            "median": median,
            "p90": p90,
        }
        print(row, flush=True)
        rows.append(row)
    alone, ours = (sum(row[side] for row in rows) for side in ("alone_s", "dooly_s"))
    limits = {limit: getattr(serving, limit) for limit in LIMITS}
    found = {"schema": 1, "device": "cpu", "dtype": serving.dtype, **limits, "models": rows}
    return {**found, "alone_s": alone, "dooly_s": ours, "saved": 1 - ours / alone}


def quantiles(errors: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the median and the 90th percentile of errors, shape (num_errors,); NaN of none."""
    median, p90 = np.quantile(errors, [0.5, 0.9]).tolist() if len(errors) else (np.nan, np.nan)
    return median, p90


def _profiled(model: ModelSource, state: Path, store: str, serving: ServingConfig, target: float) -> float:
    """Profile a model into a store of the state, unless that has ended, and return the seconds that it took.

    Raises:
        SystemExit: It was begun and cut off.
    """
    state.mkdir(parents=True, exist_ok=True)
    ledger = state / "seconds.json"
    seconds: dict[str, float | None] = json.loads(ledger.read_text()) if ledger.is_file() else {}
    key = f"{store}/{model.name}"
    if key not in seconds:
        ledger.write_text(json.dumps(seconds | {key: None}, indent=1) + "\n")
        seconds[key] = profile(model, Store.open(state / store, "a"), serving, target_error=target).measuring_s
        ledger.write_text(json.dumps(seconds, indent=1) + "\n")
    took_s = seconds[key]
    if took_s is None:
        raise SystemExit(f"error: {state}: {key} was cut off, so nobody knows what it took; begin with another --state")
    return took_s


def step_errors(
    model: ModelSource, grid: Store, sparse: Store, serving: ServingConfig, environment: Environment | None = None
) -> npt.NDArray[np.float64]:
    """Return the relative errors of whole steps that a sparse store lacks, against what a whole grid has, shape (num_steps,).

    Where both were measured is this machine, unless an environment is given.
    """
    traced, environment = profiled_model(grid, model, serving, environment)
    took = {op.signature: latencies_of(grid, op.signature, environment.digest) for op in traced.operations}
    (step,) = (op for op in traced.operations if op.stage == "engine" and op.name == STEP)
    held = latencies_of(sparse, step.signature, environment.digest)
    latency = load_latency_model(sparse, model, serving, environment)
    layers = {op.module for op in traced.operations if op.stage == "engine" and op.name != STEP}
    errors = []
    for batch in measurement_batches(serving):
        if point_of(step, batch) in held or point_of(step, batch) not in took[step.signature]:
            continue
        total = 0.0
        for op in traced.operations:
            outside = sum(count for module, count in op.placements if layer_of(module) not in layers)
            runs = op.count if op.stage == "engine" else outside
            total += runs * took[op.signature][point_of(op, batch)] if runs else 0.0
        errors.append(abs(latency.step(batch, extrapolate=True).seconds * 1e9 / total - 1))
    return np.array(errors)
