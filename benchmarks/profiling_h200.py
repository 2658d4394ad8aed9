"""What an adaptive sweep takes of a whole grid that was measured on an H200, and how far off is what it leaves out.

    python benchmarks/profiling_h200.py [--json FILE]

`benchmarks/groundtruth/h200` holds the records of Llama 3.1 8B: every batch of the grid on an eager engine, in all three passes,
with single operations in CUDA graphs. A sweep into an empty store draws from them, pass by pass, by the rule of `dooly profile`;
what it takes lies between what its records took there and what the batches took that they were measured in. Beside it stands the
grid of the first pass alone, as tools measure it that profile each model on a fixed grid: its errors are of the points that the
sweep left out, fitted by the same predictors to all but a fifth of the grid's, one fifth after the other. Parts of it, drawn by
chance, tell what fewer points would do; their seconds are of records. Errors are against the mean of all passes.
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
from measured_grid import MeasuredGrid
from profiling_measured import quantiles, step_errors

from dbstore import Store
from dooly.catalog import PASSES, passes_of
from dooly.engines import find_model
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dbstore import Record

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
        environment, into = replace(kept.environment, **_AS_PROFILED), Store.open("memory://swept", "a")
        grid = MeasuredGrid(Store.open(f"{folder}/db"), find_model(PROFILED), kept.serving, environment, into)
        found = {"schema": 1, "model": PROFILED, "device": kept.environment.device, **compare(grid)}
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(grid: MeasuredGrid) -> dict[str, Any]:
    """Return what the grid and a sweep of it took, and the errors of what they left out."""
    grid.sweep()
    swept, whole = _errors(grid, grid.into), _folds(grid)
    return {
        "grid": _took(grid, grid.store) | {"operations": quantiles(np.concatenate(list(whole.values())))},
        "dooly": _took(grid, grid.into)
        | {
            "operations": quantiles(np.concatenate(list(swept.values()))),
            "steps": quantiles(step_errors(grid.model, grid.store, grid.into, grid.serving, grid.environment)),
            "batches": grid.num_asked,
            "at_most_s": grid.asked_s,
            "refused": grid.num_refused,
        },
        "thinned": [_thinned(grid, share) for share in _SHARES],
        "levels": _levels(grid),
        "by_operation": [
            {"name": name, "grid": quantiles(whole[name]), "dooly": quantiles(swept[name]), "left_out": len(swept[name])}
            for name in swept
        ],
    }


def _errors(grid: MeasuredGrid, store: Store) -> dict[str, Floats]:
    """Return relative errors of operations at points that the sweep left out and a store lacks, shape (num_points,), by name."""
    errors: dict[str, list[Floats]] = defaultdict(list)
    for fitted in load_latency_model(store, grid.model, grid.serving, grid.environment).operations:
        errors[fitted.operation.name].append(grid.errors(fitted, store, grid.into))
    return {name: found for name, parts in errors.items() if len(found := np.concatenate(parts))}


def _folds(grid: MeasuredGrid) -> dict[str, Floats]:
    """Return the errors of the first pass's grid at points that the sweep left out, a fifth of all left out at a time."""
    fold_of = _fold_of(grid)
    errors: dict[str, list[Floats]] = defaultdict(list)
    for fold in range(_FOLDS):
        rest = _copied(
            grid, f"fold-{fold}", lambda r, fold=fold: r.attributes["pass"] == 0 and fold_of[r.signature, r.point] != fold
        )
        for name, found in _errors(grid, rest).items():
            errors[name].append(found)
    return {name: np.concatenate(found) for name, found in errors.items()}


def _thinned(grid: MeasuredGrid, share: float) -> dict[str, Any]:
    """Return what a share of each operation's points takes in the first pass, and the errors at the sweep's left-out ones."""
    rng = np.random.default_rng(0)
    drawn: set[tuple[str, Any]] = set()
    for name, points in sorted(_points(grid).items()):
        drawn |= {(name, points[place]) for place in rng.permutation(len(points))[: round(share * len(points))]}
    store = _copied(grid, f"share-{share}", lambda r: r.attributes["pass"] == 0 and (r.signature, r.point) in drawn)
    errors = np.concatenate(list(_errors(grid, store).values()))
    return {"share": share, "seconds": _took(grid, store)["seconds"][0], "operations": quantiles(errors)}


def _levels(grid: MeasuredGrid) -> list[dict[str, Any]]:
    """Return how much longer operations took in passes after the first, in the median over their points."""
    rows = []
    for operation in {op.signature: op for op in grid.traced.operations}.values():
        passes = passes_of(grid.store, operation.signature, grid.environment.digest).values()
        later = np.array([[ns / first - 1 for ns in rest] for first, *rest in passes])
        rows.append({"name": operation.name, "later": np.median(later, axis=0).tolist()})
    return rows


def _points(grid: MeasuredGrid) -> dict[str, list[Any]]:
    """Return the points of each operation, by signature."""
    return {name: sorted({point for point, _ in known}, key=str) for name, known in grid.known.items()}


def _copied(grid: MeasuredGrid, name: str, keep: Callable[[Record], bool]) -> Store:
    """Return a store with some of the grid's records."""
    into = Store.open(f"memory://{name}", "a")
    grid.describe(into)
    for known in grid.known.values():
        into.write(*filter(keep, known.values()))
    return into


def _took(grid: MeasuredGrid, store: Store) -> dict[str, Any]:
    """Return how many records of each pass a store holds, and the seconds that they took."""
    count, seconds = [0] * PASSES, [0.0] * PASSES
    held = set(store.keys())
    keys = [(name, grid.environment.digest) for name in sorted(grid.known)]
    for key in filter(held.__contains__, keys):
        for record in store.read(*key):
            number = int(str(record.attributes["pass"]))
            count[number] += 1
            seconds[number] += float(str(record.attributes["wall_s"]))
    return {"records": count, "seconds": seconds}


def _fold_of(grid: MeasuredGrid) -> dict[tuple[str, Any], int]:
    rng = np.random.default_rng(0)
    points = {}
    for name, own in sorted(_points(grid).items()):
        folds = rng.permutation(np.arange(len(own)) % _FOLDS).tolist()
        points |= {(name, point): fold for point, fold in zip(own, folds, strict=True)}
    return points


if __name__ == "__main__":
    main()
