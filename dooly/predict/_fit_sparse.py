"""Fit the operations whose sweeps ended early, to what was measured and what their families' processes say between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dbstore import Record
from dooly.catalog import DECODE_GROWTH_TOKENS, batch_at, measurement_batches, pass_medians, sizes_at
from dooly.engines import ServingConfig
from dooly.predict._features import BatchArrays
from dooly.predict._filled import fill
from dooly.predict._fit_sizes import size_inputs
from dooly.predict._operation import OperationWork
from dooly.predict._regressor import fit_unjudged, judge
from dooly.tracing import TracedOperation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dbstore import JSON
    from dooly.batch import Batch
    from dooly.catalog import Known
    from dooly.predict._domain import Domain
    from dooly.predict._filled import Filled
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import Source

    Floats = npt.NDArray[np.float64]

Records = Callable[[TracedOperation], tuple[Record, ...]]
"""Reads the records of an operation."""


def fit_sparse(
    operations: Sequence[TracedOperation], records: Records, domain: Domain, others: Callable[[], Sequence[Known]] = tuple
) -> JSON:
    """Return by signature the fits of those operations that have fewer points than a sweep over the domain; see `as_fit`.

    Args:
        operations: Operations of a model.
        records: Reads their feasible records.
        domain: Where the model is to be known.
        others: Reads what other models' operations tell of the families of these.
    """
    filled = fill(operations, {op.signature: records(op) for op in operations}, _grid(domain), others())
    return {
        op.signature: _fit_filled(OperationWork(op), filled[op.signature], pass_medians(records(op)))
        for op in operations
        if op.signature in filled
    }


def as_fit(
    regressor: Regressor,
    points: list[list[float]] | None = None,
    known_error: float | None = None,
    source: Source = "measured",
) -> dict[str, Any]:
    """Return an operation's fit as JSON.

    Args:
        regressor: What was fitted.
        points: Sizes and latencies in nanoseconds, where the operation goes by these and not by the regressor.
        known_error: The relative error between them, where it is not told by leaving points out.
        source: Where most of what it was fitted to is from.
    """
    return {"regressor": regressor.to_json(), "points": points, "known_error": known_error, "source": source}


def _grid(domain: Domain) -> tuple[Batch, ...]:
    """Return the batches that a sweep over a domain has to know."""
    longest = max(1, domain.context - DECODE_GROWTH_TOKENS + 1)
    limits = ServingConfig(
        max_model_len=longest, max_num_batched_tokens=max(1, domain.num_tokens - 1), max_num_seqs=domain.num_reqs
    )
    return measurement_batches(limits)


def _fit_filled(work: OperationWork, filled: Filled, passes_ns: Floats) -> dict[str, Any]:
    """Fit an operation to its points with what lies between them, judged at measured ones that neither is told of."""
    terms, features = _inputs(work, filled)
    by_points = len(work.operation.request_dims) == 1 and not work.is_attention
    count = filled.num_measured
    predicted_ns, fold_of = np.empty(count), np.empty(count, dtype=np.int64)
    for fold, known in enumerate(filled.folds):
        held, told_ns = known.held, known.latency_ns[known.held]
        if not by_points:
            regressor = fit_unjudged(terms, features, known.latency_ns, known.importance)
            told_ns = regressor.predict_ns(terms[held], features[held])
        predicted_ns[held], fold_of[held] = told_ns, fold
    median, p90, coverage = judge(predicted_ns, filled.whole.latency_ns[:count], fold_of, passes_ns)
    regressor = fit_unjudged(terms, features, filled.whole.latency_ns, filled.whole.importance)
    regressor = replace(regressor, relative_error=median, relative_error_p90=p90, coverage=coverage, num_points=count)
    source: Source = "measured" if 2 * count >= len(filled.points) else "family"
    if not by_points:
        return as_fit(regressor, source=source)
    sizes = sizes_at(filled.points, work.operation.request_dims)[:, 0]
    order = np.argsort(sizes)
    return as_fit(regressor, [sizes[order].tolist(), filled.whole.latency_ns[order].tolist()], median, source)


def _inputs(work: OperationWork, filled: Filled) -> tuple[Floats, Floats]:
    """Return base terms and tree features at an operation's points."""
    if not work.is_attention:
        return size_inputs(work, filled.points)
    batches = BatchArrays.of([batch_at(point) for point in filled.points])
    return work.terms(batches), work.features(batches)
