"""What a step is the sum of: its operations, what layers take beyond theirs, and what the engine does around the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dooly.catalog import LAYER, STEP
from dooly.predict._fitted import FittedLayer, runs_in, step_features, step_terms
from dooly.tracing import layer_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._fitted import FittedOperation
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import Source
    from dooly.predict._tables import Price
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]


def laid_out(traced: TracedModel, fit: Callable[[TracedOperation], FittedOperation]) -> StepParts:
    """Return the parts of a model's step as the sum of its operations alone.

    Args:
        traced: The model.
        fit: Gives each operation what predicts it.
    """
    rows = [op for op in traced.operations if op.stage != "engine"]
    whole = {op.module: op for op in traced.operations if op.stage == "engine" and op.name == LAYER}
    counts = {path: op.count for path, op in whole.items()} or layer_counts(rows)
    layers = (FittedLayer(whole.get(path), n, runs_in(path, n, rows, fit), None) for path, n in counts.items())
    return StepParts(runs_in(None, 1, rows, fit), tuple(layers), None)


class StepPart(NamedTuple):
    """One term of the sum, over all its runs in each batch."""

    name: str
    """What breakdowns call it."""
    source: Source
    """Where its latency is from."""
    latency_ns: Floats
    """Nanoseconds, shape (num_batches,); what a layer takes beyond its operations may be negative."""
    error_ns: Floats
    """Typical error in nanoseconds, shape (num_batches,)."""


@dataclass(frozen=True)
class StepParts:
    """The parts of a model's steps, each with what predicts it."""

    outside: tuple[FittedOperation, ...]
    """Operations outside of all layers, one entry a run."""
    layers: tuple[FittedLayer, ...]
    """The kinds of layers."""
    own: Regressor | None
    """What the engine does around the model; None where its host is apart."""

    @cached_property
    def operations(self) -> tuple[FittedOperation, ...]:
        """All operations, those within layers after those outside; what a layer runs twice is there twice."""
        return (*self.outside, *(member for layer in self.layers for member in layer.members))

    @cached_property
    def runs(self) -> tuple[tuple[FittedOperation, int], ...] | None:
        """The operations and how often a step runs each; None where layers or the engine take time beyond theirs."""
        if self.own is not None or any(layer.regressor is not None for layer in self.layers):
            return None
        inside = ((member, layer.count) for layer in self.layers for member in layer.members)
        return (*((fitted, 1) for fitted in self.outside), *inside)

    def of(self, batches: BatchArrays, price: Price) -> Iterator[StepPart]:
        """Yield all parts of each batch's step, given what one run of each operation takes there."""
        for fitted in self.outside:
            latency_ns = price(fitted)
            yield StepPart(fitted.name, fitted.latency.source, latency_ns, fitted.relative_error * latency_ns)
        for layer in self.layers:
            yield from _of_layer(layer, batches, price)
        if self.own is not None:
            own_ns = self.own.predict_ns(step_terms(batches), step_features(batches))
            yield StepPart(STEP, "measured", own_ns, self.own.relative_error * own_ns)


def _of_layer(layer: FittedLayer, batches: BatchArrays, price: Price) -> Iterator[StepPart]:
    """Yield the parts of a kind of layer, over all layers of the kind.

    The whole is fitted on sums of operations at points that these are fitted to as well, so its own error tells nothing of theirs
    elsewhere: each keeps its own.
    """
    count, inner_ns = layer.count, np.zeros(len(batches.new))
    for fitted in layer.members:
        latency_ns = price(fitted)
        inner_ns += latency_ns
        yield StepPart(fitted.name, fitted.latency.source, count * latency_ns, fitted.relative_error * count * latency_ns)
    if layer.regressor is not None:
        whole_ns = layer.whole_ns(inner_ns, batches)
        yield StepPart(LAYER, "measured", count * (whole_ns - inner_ns), layer.regressor.relative_error * count * whole_ns)
