"""What a device takes for operations of any configuration, from the measurements that ship with Dooly.

Of each operation it says where its latency is from: a table of just this collective (measured), a family's regressor (family), or
the bytes that it moves over the bandwidth that such operations reach (estimated).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from dooly.errors import MissingOperationError
from dooly.predict._family import FamilyRegressor
from dooly.predict._family_features import decode_inputs, linear_inputs, prefill_inputs
from dooly.predict._hardware import Hardware
from dooly.predict._kinds import AttentionShape, Collective, LinearLayer, kind_of, moves_only

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.predict._operation import OperationWork
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]

Source = Literal["measured", "family", "estimated"]
"""Where a latency is from: records of this very operation, others of its family, or bytes over a measured bandwidth."""
SOURCES: tuple[Source, ...] = ("measured", "family", "estimated")
_ESTIMATE_ERROR = 0.5
"""Relative error that an estimate is taken to have: nothing measures it."""


class OperationLatency(Protocol):
    """Predicts how long one run of an operation takes."""

    @property
    def source(self) -> Source:
        """Where the latencies are from."""
        ...

    @property
    def relative_error(self) -> float:
        """Typical relative error."""
        ...

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        ...


@dataclass(frozen=True, slots=True)
class LinearFamily:
    """A linear layer, by the family of all."""

    layer: LinearLayer
    """Its widths."""
    hardware: Hardware
    """The device."""
    regressor: FamilyRegressor
    """The family's regressor."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over widths that the family did not know."""
        return self.regressor.relative_error

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        m = work.sizes(batches)
        n, k = (np.full(len(m), float(size)) for size in (self.layer.n, self.layer.k))
        return self.regressor.predict_ns(*linear_inputs(self.hardware, m, n, k, 2.0))


@dataclass(frozen=True, slots=True)
class AttentionFamily:
    """Attention, by the families of its decodes and prefills; in a batch of both, one after the other."""

    shape: AttentionShape
    """Its heads."""
    hardware: Hardware
    """The device."""
    decodes: FamilyRegressor
    """The regressor of batches that decode."""
    prefills: FamilyRegressor
    """The regressor of batches that prefill."""
    source: Source = "family"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error over shapes that the families did not know, of the worse of the two."""
        return max(self.decodes.relative_error, self.prefills.relative_error)

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        amounts = batches.attention(work.window)
        has_decodes, has_prefills = amounts.num_decodes > 0, amounts.num_prefills > 0
        total = np.zeros(len(has_decodes))
        if has_decodes.any():
            total += np.where(has_decodes, self.decodes.predict_ns(*decode_inputs(self.hardware, self.shape, amounts)), 0)
        if has_prefills.any():
            total += np.where(has_prefills, self.prefills.predict_ns(*prefill_inputs(self.hardware, self.shape, amounts)), 0)
        return np.asarray(total - np.where(has_decodes & has_prefills, self.hardware.launch_ns, 0))


@dataclass(frozen=True, slots=True)
class CollectiveTable:
    """A collective, between the payloads that were measured by interpolation of logarithms."""

    payload_bytes: Floats
    """Measured payloads, growing, shape (num_points,)."""
    measured_ns: Floats
    """Their latencies, shape (num_points,)."""
    source: Source = "measured"
    """Where the latencies are from."""

    @property
    def relative_error(self) -> float:
        """Median relative error at measured payloads that are left out, each alone."""
        x, y = np.log(self.payload_bytes), np.log(self.measured_ns)
        inner = [np.interp(x[i], np.delete(x, i), np.delete(y, i)) - y[i] for i in range(1, len(x) - 1)]
        return float(np.median(np.abs(np.expm1(inner)))) if inner else 0.0

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        payload = work.payload_bytes(batches)
        # Below the smallest payload latency counts alone; above the largest, bandwidth does.
        beyond = np.maximum(payload / self.payload_bytes[-1], 1)
        logs = np.interp(np.log(payload), np.log(self.payload_bytes), np.log(self.measured_ns))
        return np.asarray(np.exp(logs) * beyond)


@dataclass(frozen=True, slots=True)
class MovedBytes:
    """An operation that computes little, by the bytes that it moves."""

    hardware: Hardware
    """The device."""
    source: Source = "estimated"
    """Where the latencies are from."""
    relative_error: float = _ESTIMATE_ERROR
    """What an estimate is taken to be off by."""

    def latency_ns(self, work: OperationWork, batches: BatchArrays) -> Floats:
        """Return the latency of one run in each batch, in nanoseconds, shape (num_batches,)."""
        _, traffic = work.cost(batches)
        return np.asarray(self.hardware.launch_ns + 1e9 * traffic / self.hardware.moved_bytes_per_s)


class DeviceLatencies:
    """The latencies of a device whose measurements lie in a folder: facts, families, tables of collectives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.hardware = Hardware.read(folder)

    @cached_property
    def collectives(self) -> Mapping[Collective, CollectiveTable]:
        """Tables by collective."""
        with np.load(self._folder / "collectives.npz", allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        tables = {}
        for name, (payload, latency_ns) in found.items():
            operator, _, ranks = name.rpartition("-")
            tables[Collective(operator, int(ranks))] = CollectiveTable(payload, latency_ns)
        return tables

    @cached_property
    def linear(self) -> FamilyRegressor:
        """The family of linear layers."""
        return FamilyRegressor.load(self._folder / "linear.cbm")

    @cached_property
    def attention(self) -> tuple[FamilyRegressor, FamilyRegressor]:
        """The families of decodes and of prefills."""
        return FamilyRegressor.load(self._folder / "decodes.cbm"), FamilyRegressor.load(self._folder / "prefills.cbm")

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation on the device.

        Raises:
            MissingOperationError: Nothing covers it; the message names it and what would.
        """
        kind = kind_of(operation)
        if isinstance(kind, LinearLayer) and kind.dtype in {"bfloat16", "float16"}:
            return LinearFamily(kind, self.hardware, self.linear)
        if isinstance(kind, AttentionShape) and kind.dtype in {"bfloat16", "float16"}:
            return AttentionFamily(kind, self.hardware, *self.attention)
        if isinstance(kind, Collective):
            return self._collective(kind, operation, model)
        if kind is None and moves_only(operation):
            return MovedBytes(self.hardware)
        raise MissingOperationError(
            f"{model}: {operation.module or operation.name} ({operation.module_class}) has no family in what was measured on "
            f"{self.hardware.name}; profile the model on such a device with `dooly profile`, and simulate with --db"
        )

    def _collective(self, wanted: Collective, operation: TracedOperation, model: str) -> CollectiveTable:
        # Gathering on one rank moves what gathering on all does into that rank, by the same links.
        operator = "all_gather" if wanted.operator == "gather" else wanted.operator
        if (table := self.collectives.get(Collective(operator, wanted.num_ranks))) is not None:
            return table
        known = sorted(c.num_ranks for c in self.collectives if c.operator == operator)
        raise MissingOperationError(
            f"{model}: {operation.module} needs {wanted.operator} over {wanted.num_ranks} ranks; {self.hardware.name} has it "
            f"over {', '.join(map(str, known)) or 'none'} only; choose --tensor-parallel-size accordingly"
        )
