"""How many of another session's measurements lie in the 90 % intervals that a profile gives: drift between sessions included.

    python benchmarks/interval_coverage.py STORE STORE... [--json FILE]

Each store holds a profile of the same model, made on the same machine with the same settings in a session of its own. Every
operation is fitted to each store, and judged at every point and in every pass of each other store that nothing disturbed. What
layers and steps take beyond their operations has no interval. Of intervals that hold, 85 to 95 % cover.
"""

from __future__ import annotations

import argparse
import json
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import Environment, Store
from dooly.catalog import batch_at, medians, pass_medians, sizes_at
from dooly.engines import ServingConfig
from dooly.predict import BatchArrays, fit_latency_model
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.predict import FittedOperation

    Floats = npt.NDArray[np.float64]


def main() -> None:
    """Judge each store by all others, and print a row an operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if len(args.stores) < 2:  # noqa: PLR2004 - one to fit to, one to judge by
        parser.error("give the stores of two sessions or more")
    sessions = [Session(path) for path in args.stores]
    errors: dict[str, list[Floats]] = {}
    widths: dict[str, list[float]] = {}
    for fitted, judging in permutations(sessions, 2):
        for operation in fitted.operations.values():
            width = getattr(operation.latency, "regressor", None)
            if width is not None and (found := judging.errors(operation)) is not None:
                errors.setdefault(operation.name, []).append(found / width.relative_error_p90)
                widths.setdefault(operation.name, []).append(width.relative_error_p90)
    rows = [_row(name, np.concatenate(found), widths[name]) for name, found in errors.items()]
    for row in rows:
        print(json.dumps(row))
    everything = np.concatenate([part for found in errors.values() for part in found])
    summary = {"schema": 1, "sessions": len(sessions), "measurements": len(everything), "cover": _share(everything)}
    print(json.dumps(summary))
    if args.json:
        args.json.write_text(json.dumps(summary | {"operations": rows}, indent=1) + "\n")


class Session:
    """What one store knows of the model that it was filled with."""

    def __init__(self, path: Path) -> None:
        """Read and fit what the store holds."""
        self._store = Store.open(path)
        (name,) = self._store.documents("traces")
        document: Any = self._store.read_document("traces", name)
        environment = Environment.from_json(self._store.read_document("environments", document["environment"]))
        latency = fit_latency_model(
            self._store, TracedModel.from_json(document["traced"]), environment, ServingConfig(environment.dtype)
        )
        self._environment = environment.digest
        self.operations = {fitted.operation.signature: fitted for fitted in latency.operations}

    def errors(self, fitted: FittedOperation) -> Floats | None:
        """Return the relative errors of an operation at all points and passes of this store; None where it has none."""
        signature = fitted.operation.signature
        if not self._store.points(signature, self._environment):
            return None
        records = [r for r in self._store.read(signature, self._environment) if r.infeasible is None]
        predicted_ns = fitted.latency.latency_ns(fitted.work, batches_at(fitted, medians(records)[0]))
        errors = np.abs(predicted_ns[:, None] / pass_medians(records) - 1)
        return np.asarray(errors[~np.isnan(errors)])


def batches_at(fitted: FittedOperation, points: Sequence[Any]) -> BatchArrays:
    """Return batches that have some points of an operation."""
    if fitted.work.is_attention:
        return BatchArrays.of([batch_at(point) for point in points])
    sizes = sizes_at(points, fitted.operation.request_dims)[:, 0].astype(np.int64)
    is_of_tokens = fitted.operation.request_dims == ("num_tokens",)
    return BatchArrays.of_counts(sizes, np.ones_like(sizes) if is_of_tokens else sizes)


def _row(name: str, errors: Floats, widths: Sequence[float]) -> dict[str, Any]:
    return {"operation": name, "cover": _share(errors), "half_width": round(float(np.mean(widths)), 4)}


def _share(errors: Floats) -> float:
    """Return the share of errors, in half widths, that lie in their interval."""
    return round(float(np.mean(errors <= 1)), 4)


if __name__ == "__main__":
    main()
