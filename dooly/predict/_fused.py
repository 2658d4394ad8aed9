"""Quantisation that a compiling engine makes part of the operation before: what a product in FP8 takes without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._kinds import LinearLayer, kind_of, moves_only

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._hardware import Hardware
    from dooly.predict._operation import OperationWork
    from dooly.predict._sources import OperationLatency, Source
    from dooly.tracing import TracedModel

    Floats = npt.NDArray[np.float64]

_MOVED_BYTES = 3
"""Of each activation: two are read, and one is written."""


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """A product whose activations the operation before quantises: without the kernel that would, by the bytes that it moves."""

    whole: OperationLatency
    """What it takes with that kernel, as it is measured alone."""
    hardware: Hardware
    """The device."""
    width: int
    """Activations of a token."""

    @property
    def source(self) -> Source:
        """Where the latency is from: as the whole's, but `family` where that was measured, as what is left of it was not."""
        return "family" if self.whole.source == "measured" else self.whole.source

    @property
    def relative_error(self) -> float:
        """Typical relative error of the whole."""
        return self.whole.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        moved = _MOVED_BYTES * self.width * work.sizes(batches)
        quantising_ns = self.hardware.launch_ns + 1e9 * moved / self.hardware.moved_bytes_per_s
        return np.asarray(np.maximum(self.whole.latency_ns(work, batches) - quantising_ns, self.hardware.launch_ns))


def without_quantising(latency: OperationLatency, layer: LinearLayer | None, hardware: Hardware | None) -> OperationLatency:
    """Return what an operation takes, a fused product without its kernel that quantises where the device is known."""
    return latency if layer is None or hardware is None else FusedLinear(latency, hardware, layer.k)


def fused_linear_layers(traced: TracedModel) -> dict[str, LinearLayer]:
    """Return the products in FP8, by signature, that follow a norm or an activation; none that runs in several places of a layer.

    A compiler joins the quantisation of activations with such an operation. Attention and collectives are closed to it, and
    scales by blocks are made by a kernel of their own.
    """
    found: dict[str, LinearLayer] = {}
    refused: set[str] = set()
    for before, operation in zip((None, *traced.operations), traced.operations, strict=False):
        kind = kind_of(operation)
        if isinstance(kind, LinearLayer) and kind.dtype == "fp8":
            places = {path.rpartition(".")[2] for path, _ in operation.placements}
            follows = before is not None and before.stage == operation.stage and kind_of(before) is None and moves_only(before)
            if follows and len(places) == 1:
                found[operation.signature] = kind
            else:
                refused.add(operation.signature)
    return {signature: kind for signature, kind in found.items() if signature not in refused}
