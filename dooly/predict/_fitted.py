"""Operations, layers and steps with what predicts them: the parts that a latency model adds up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import LAYER, layer_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
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

    def latency_ns(self, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        return self.latency.latency_ns(self.work, batches) + self.gap_ns


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """A kind of layer: its operations, and the regressor of the whole."""

    operation: TracedOperation
    """The whole layer."""
    members: tuple[FittedOperation, ...]
    """The operations that it runs, one entry a run."""
    regressor: Regressor | None
    """Latency of the layer, on the sum of its operations; None where no layer was measured as a whole, and the sum is all."""

    def whole_ns(self, inner: Floats, batches: BatchArrays) -> Floats:
        """Return the latency of the layer in each batch, given the sum of its operations, shape (num_batches,) both."""
        if self.regressor is None:
            return inner
        return self.regressor.predict_ns(layer_terms(inner, batches), layer_features(batches))


def laid_out(
    traced: TracedModel, fitted: Callable[[TracedOperation], FittedOperation]
) -> tuple[tuple[FittedOperation, ...], tuple[FittedLayer, ...]]:
    """Return a model's operations outside of all layers, and its layers as the sum of theirs, one entry a run."""
    rows = [op for op in traced.operations if op.stage != "engine"]
    outside = tuple(
        fitted(op) for op in rows for module, count in op.placements if layer_of(module) is None for _ in range(count)
    )
    layers = tuple(
        FittedLayer(layer, tuple(fitted(op) for op in rows for m, _ in op.placements if layer_of(m) == layer.module), None)
        for layer in traced.operations
        if layer.stage == "engine" and layer.name == LAYER
    )
    return outside, layers


def layer_terms(inner: Floats, batches: BatchArrays) -> Floats:
    """Return the base terms of a whole layer: its operations' sum, a constant, and a part per token."""
    return np.column_stack([inner, np.ones(len(inner)), batches.num_tokens])


def layer_features(batches: BatchArrays) -> Floats:
    """Return the tree features of a whole layer."""
    work = batches.attention(None)
    return np.column_stack([batches.num_tokens, batches.num_reqs, work.decode_kv_tokens, work.prefill_pairs])


def step_terms(batches: BatchArrays) -> Floats:
    """Return the base terms of the engine's own work in a step."""
    counts = (batches.num_reqs, batches.num_tokens, batches.num_new_requests)
    return np.column_stack([np.ones(len(batches.new)), *counts])


def step_features(batches: BatchArrays) -> Floats:
    """Return the tree features of the engine's own work in a step."""
    return np.column_stack([batches.num_reqs, batches.num_tokens, batches.num_new_requests])


def operation_name(operation: TracedOperation) -> str:
    """Return what breakdowns call an operation: its module, and the collective that the module runs behind its own work."""
    collective = operation.name in {"all_reduce", "all_gather", "gather", "reduce_scatter"}
    return f"{operation.module}.{operation.name}" if collective else operation.module


def generic_path(module: str) -> str:
    """Return a module path with the layer's number taken out."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
