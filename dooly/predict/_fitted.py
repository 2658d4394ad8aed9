"""Operations, layers and steps with what predicts them: the parts that a latency model adds up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dooly.tracing import generic_path, layer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedOperation:
    """An operation with what predicts it."""

    operation: TracedOperation
    """The traced operation."""
    work: OperationWork
    """Its closed forms."""
    latency: OperationLatency
    """What it takes, and where that is from."""
    gap_ns: float = 0.0
    """What passes before the next operation, where its own time does not hold it."""

    @cached_property
    def name(self) -> str:
        """What breakdowns call it, alike in all layers: its module, and the piece or collective that runs beside its own work."""
        collective = self.operation.name in {"all_reduce", "all_gather", "gather", "reduce_scatter"}
        is_beside = collective or self.operation.is_piece
        path = f"{self.operation.module}.{self.operation.name}".lstrip(".") if is_beside else self.operation.module
        return path if layer_of(path) is None else generic_path(path)

    @cached_property
    def relative_error(self) -> float:
        """Typical relative error of its latency."""
        return self.latency.relative_error

    def latency_ns(self, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        if self.work.is_attention and batches.attended:
            seen = [share * self.latency.latency_ns(self.work, view) for share, view in batches.attended]
            return np.asarray(np.sum(seen, axis=0) + self.gap_ns)
        return self.latency.latency_ns(self.work, batches) + self.gap_ns


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """A kind of layer: its operations, and the regressor of the whole."""

    operation: TracedOperation | None
    """The whole layer; None where its end is compiled with the begin of the next."""
    count: int
    """How often a step runs it."""
    members: tuple[FittedOperation, ...]
    """The operations that it runs, one entry a run of one layer."""
    regressor: Regressor | None
    """Latency of the layer, on the sum of its operations; None where no layer was measured as a whole, and the sum is all."""

    def whole_ns(self, inner: Floats, batches: BatchArrays) -> Floats:
        """Return the latency of the layer in each batch, given the sum of its operations, shape (num_batches,) both."""
        if self.regressor is None:
            return inner
        return self.regressor.predict_ns(layer_terms(inner, batches), layer_features(batches))


def runs_in(
    layer: str | None, times: int, operations: Sequence[TracedOperation], fit: Callable[[TracedOperation], FittedOperation]
) -> tuple[FittedOperation, ...]:
    """Return what one layer runs, or a step outside of all layers, one entry a run.

    Args:
        layer: Path of the layer; None for what lies outside of all.
        times: How often a step runs it.
        operations: The model's operations.
        fit: Gives each operation what predicts it.
    """
    placed = [(op, count) for op in operations for module, count in op.placements if layer_of(module) == layer]
    return tuple(fit(op) for op, count in placed for _ in range(count // times))


def layer_terms(inner: Floats, batches: BatchArrays) -> Floats:
    """Return the base terms of a whole layer: its operations' sum, a constant, and a part per token."""
    return np.column_stack([inner, np.ones(len(inner)), batches.num_tokens])


def layer_features(batches: BatchArrays) -> Floats:
    """Return the tree features of a whole layer."""
    seen = [(share, view.attention(None)) for share, view in batches.attended or ((1.0, batches),)]
    reads = (sum(share * getattr(work, name) for share, work in seen) for name in ("decode_kv_tokens", "prefill_pairs"))
    return np.column_stack([batches.num_tokens, batches.num_reqs, *reads])


def step_terms(batches: BatchArrays) -> Floats:
    """Return the base terms of the engine's own work in a step."""
    counts = (batches.num_reqs, batches.num_tokens, batches.num_new_requests)
    return np.column_stack([np.ones(len(batches.new)), *counts])


def step_features(batches: BatchArrays) -> Floats:
    """Return the tree features of the engine's own work in a step."""
    return np.column_stack([batches.num_reqs, batches.num_tokens, batches.num_new_requests])
