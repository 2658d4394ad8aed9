"""What an adaptive sweep takes of a whole grid that was measured on an H200, and how far off is what it leaves out.

    python benchmarks/profiling_h200.py [--json FILE]

`benchmarks/groundtruth/h200` holds the records of Llama 3.1 8B: every batch of the grid on an eager engine, in all three passes,
with single operations in CUDA graphs. A sweep into an empty store draws from them, pass by pass, by the rule of `dooly profile`;
what it takes is what its records took there. Beside it stands the grid of the first pass alone, as tools measure it that profile
each model on a fixed grid: its errors are of the points that the sweep left out, fitted by the same predictors to all but a fifth
of the grid's, one fifth after the other. Parts of it, drawn by chance, tell what fewer points would do. Errors are against the
mean of all passes.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from h200_truth import PROFILED, RUNS, kept_loads
from interval_coverage import batches_at
from profiling_measured import quantiles, step_errors

from dbstore import Environment, Store
from dooly.catalog import PASSES, latencies_of, passes_of, point_of, profiled_model, write_described, write_traced
from dooly.engines import find_model
from dooly.measure import TARGET_ERROR
from dooly.measure._tasks import InfeasibleBatchError, infeasible_record, run_tasks
from dooly.measure.engine._adaptive import adaptive_plan
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dbstore import Record
    from dooly.engines import ModelSource, ServingConfig
    from dooly.measure.engine._profiler import Task

    Floats = npt.NDArray[np.float64]

_FOLDS = 5
_SHARES = (0.5, 0.35, 0.25)
"""Of the grid's points of each operation."""
_AS_PROFILED = {"execution_mode": "eager", "model_runner": "v1"}


def main() -> None:
    """Draw, judge, print, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(RUNS / "records.tar.xz") as archive:
            archive.extractall(folder, filter="data")
        kept = next(iter(kept_loads(RUNS).values()))
        grid = Grid(Store.open(f"{folder}/db"), find_model(PROFILED), kept.serving, replace(kept.environment, **_AS_PROFILED))
        found = {"schema": 1, "model": PROFILED, "device": kept.environment.device, **compare(grid)}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


class Grid:
    """Records of a whole grid, from which a sweep draws."""

    def __init__(self, store: Store, model: ModelSource, serving: ServingConfig, environment: Environment) -> None:
        """Take the store of the grid, and what it is of."""
        self.store, self.model, self.serving, self.environment = store, model, serving, environment
        self.traced, _ = profiled_model(store, model, serving, environment)
        self._known: dict[str, dict[tuple[Any, Any], Record]] = {
            name: {(record.point, record.attributes["pass"]): record for record in self.records(store, name)}
            for name in {operation.signature for operation in self.traced.operations}
        }
        self.into = self.emptied("swept")
        self.num_refused = 0

    def emptied(self, name: str) -> Store:
        """Return a store that knows the model and the environment, and no record."""
        into = Store.open(f"memory://{name}", "a")
        write_described(into, self.environment, self.traced)
        write_traced(into, self.model, self.serving, self.traced, self.environment)
        return into

    def points(self) -> dict[str, list[Any]]:
        """Return the points of each operation, by signature."""
        return {name: sorted({point for point, _ in known}, key=str) for name, known in self._known.items()}

    def records(self, store: Store, signature: str) -> Sequence[Record]:
        """Return what a store holds of an operation."""
        digest = self.environment.digest
        return store.read(signature, digest) if store.points(signature, digest) else ()

    def copied(self, name: str, keep: Callable[[Record], bool]) -> Store:
        """Return a store with some of the grid's records."""
        into = self.emptied(name)
        for known in self._known.values():
            into.write(*filter(keep, known.values()))
        return into

    def measure(self, task: Task) -> Sequence[Record]:
        """Return what the grid holds of a task, in its pass; today's grid has batches that it lacks, which cannot be run."""
        try:
            found = [self._known[op.signature][point_of(op, task.batch), task.number] for op in task.missing]
        except KeyError as error:
            raise InfeasibleBatchError("the grid lacks it") from error
        self.into.write(*found)
        return found

    def give_up(self, task: Task, reason: str) -> Sequence[Record]:
        """Return that a task cannot be run, and keep nothing of it."""
        self.num_refused += 1
        keys = [((op.signature, self.environment.digest), point_of(op, task.batch)) for op in task.missing]
        return [infeasible_record(key, point, task.number, reason) for key, point in keys]

    def compact(self) -> None:
        """Leave the store as it is."""

    def took(self, store: Store) -> dict[str, Any]:
        """Return how many records of each pass a store holds, and the seconds that they took."""
        count, seconds = [0] * PASSES, [0.0] * PASSES
        for name in sorted(self._known):
            for record in self.records(store, name):
                number = int(str(record.attributes["pass"]))
                count[number] += 1
                seconds[number] += float(str(record.attributes["wall_s"]))
        return {"records": count, "seconds": seconds}


def compare(grid: Grid) -> dict[str, Any]:
    """Return what the grid and a sweep of it took, and the errors of what they left out."""
    plan = adaptive_plan(grid.traced.operations, grid.serving, grid.into, grid.environment.digest, TARGET_ERROR)
    run_tasks(grid, plan, None, lambda _done, _left: None)
    swept, whole = _errors(grid, grid.into), _folds(grid)
    return {
        "grid": grid.took(grid.store) | {"operations": quantiles(np.concatenate(list(whole.values())))},
        "dooly": grid.took(grid.into)
        | {
            "operations": quantiles(np.concatenate(list(swept.values()))),
            "steps": quantiles(step_errors(grid.model, grid.store, grid.into, grid.serving, grid.environment)),
            "refused": grid.num_refused,
        },
        "thinned": [_thinned(grid, share) for share in _SHARES],
        "levels": _levels(grid),
        "by_operation": [
            {"name": name, "grid": quantiles(whole[name]), "dooly": quantiles(swept[name]), "left_out": len(swept[name])}
            for name in swept
        ],
    }


def _errors(grid: Grid, store: Store) -> dict[str, Floats]:
    """Return relative errors of operations at points that the sweep left out and a store lacks, shape (num_points,), by name."""
    latency, environment = load_latency_model(store, grid.model, grid.serving, grid.environment), grid.environment.digest
    errors: dict[str, list[Floats]] = defaultdict(list)
    for fitted in latency.operations:
        operation = fitted.operation
        took = latencies_of(grid.store, operation.signature, environment)
        held = latencies_of(store, operation.signature, environment) | latencies_of(grid.into, operation.signature, environment)
        points: list[Any] = [point for point in took if point not in held]
        if points:
            predicted_ns = fitted.latency.latency_ns(fitted.work, batches_at(fitted, points))
            errors[operation.name].append(np.abs(predicted_ns / np.array([took[point] for point in points]) - 1))
    return {name: np.concatenate(found) for name, found in errors.items()}


def _folds(grid: Grid) -> dict[str, Floats]:
    """Return the errors of the first pass's grid at points that the sweep left out, a fifth of all left out at a time."""
    fold_of = _fold_of(grid)
    errors: dict[str, list[Floats]] = defaultdict(list)
    for fold in range(_FOLDS):
        rest = grid.copied(
            f"fold-{fold}", lambda r, fold=fold: r.attributes["pass"] == 0 and fold_of[r.signature, r.point] != fold
        )
        for name, found in _errors(grid, rest).items():
            errors[name].append(found)
    return {name: np.concatenate(found) for name, found in errors.items()}


def _thinned(grid: Grid, share: float) -> dict[str, Any]:
    """Return what a share of each operation's points takes in the first pass, and the errors at the sweep's left-out ones."""
    rng = np.random.default_rng(0)
    drawn: set[tuple[str, Any]] = set()
    for name, points in sorted(grid.points().items()):
        drawn |= {(name, points[place]) for place in rng.permutation(len(points))[: round(share * len(points))]}
    store = grid.copied(f"share-{share}", lambda r: r.attributes["pass"] == 0 and (r.signature, r.point) in drawn)
    errors = np.concatenate(list(_errors(grid, store).values()))
    return {"share": share, "seconds": grid.took(store)["seconds"][0], "operations": quantiles(errors)}


def _levels(grid: Grid) -> list[dict[str, Any]]:
    """Return how much longer operations took in passes after the first, in the median over their points."""
    rows = []
    for operation in {op.signature: op for op in grid.traced.operations}.values():
        passes = passes_of(grid.store, operation.signature, grid.environment.digest).values()
        later = np.array([[ns / first - 1 for ns in rest] for first, *rest in passes])
        rows.append({"name": operation.name, "later": np.median(later, axis=0).tolist()})
    return rows


def _fold_of(grid: Grid) -> dict[tuple[str, Any], int]:
    rng = np.random.default_rng(0)
    points = {}
    for name, own in sorted(grid.points().items()):
        folds = rng.permutation(np.arange(len(own)) % _FOLDS).tolist()
        points |= {(name, point): fold for point, fold in zip(own, folds, strict=True)}
    return points


if __name__ == "__main__":
    main()
