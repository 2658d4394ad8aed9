"""What operations cost in one batch: their closed forms by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.batch import Batch
    from dooly.tracing import TracedModel, TracedOperation


@dataclass(frozen=True, slots=True)
class Cost:
    """Work and least memory traffic, of one operation or of a whole step."""

    flops: float
    """Floating-point operations of matrix products, attention and convolutions."""
    size_bytes: float
    """Least memory traffic, in bytes."""

    @property
    def intensity(self) -> float:
        """Arithmetic intensity, in FLOPs a byte."""
        return self.flops / self.size_bytes if self.size_bytes else 0.0


@dataclass(frozen=True, slots=True)
class CostedOperation:
    """An operation with what one run of it costs."""

    operation: TracedOperation
    """The traced operation."""
    cost: Cost | None
    """The cost of one run in the batch; None where it depends on more than the batch tells."""


def cost_operations(traced: TracedModel, batch: Batch) -> tuple[CostedOperation, ...]:
    """Return a model's operations with the cost of each in a batch."""
    return tuple(CostedOperation(operation, _cost(operation, batch)) for operation in traced.operations)


def total_cost(rows: Sequence[CostedOperation]) -> Cost:
    """Return what one step costs: every run of every operation whose cost is known."""
    known = [(row.operation.count, row.cost) for row in rows if row.cost is not None]
    return Cost(sum(count * cost.flops for count, cost in known), sum(count * cost.size_bytes for count, cost in known))


def _cost(operation: TracedOperation, batch: Batch) -> Cost | None:
    from dooly.predict import BatchArrays, OperationWork
    from dooly.tracing import evaluate_form, form_names

    forms = (operation.request_flops, operation.request_bytes)
    # A forward of plain PyTorch has no engine around it: requests are rows, padded to the longest.
    rows = {"batch": batch.num_reqs, "seq": max(batch.num_new_tokens)}
    if {name for form in forms for name in form_names(form)} <= rows.keys():
        return Cost(*(float(evaluate_form(form, rows)) for form in forms))
    try:
        flops, size_bytes = OperationWork(operation).cost(BatchArrays.of([batch]))
    except KeyError:
        return None
    return Cost(float(flops[0]), float(size_bytes[0]))
