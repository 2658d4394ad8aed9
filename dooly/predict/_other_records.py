"""A model on a device by the records of another model alone: how far families reach, which its own records then judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import operation_table
from dooly.engines import ServingConfig
from dooly.errors import InvalidInputError
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._estimated import MovedBytes
from dooly.predict._families import LinearFamily
from dooly.predict._family import fit_family
from dooly.predict._family_features import linear_inputs
from dooly.predict._fit_hardware import assemble, device_folder
from dooly.predict._kinds import AttentionShape, Collective, LinearLayer, kind_of
from dooly.predict._measured import MeasuredAttention

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource
    from dooly.predict._interconnect import Interconnect
    from dooly.predict._latency_model import LatencyModel
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedOperation


def load_model_by_others(
    hardware: str, model: ModelSource, serving: ServingConfig, known: ModelSource, interconnect: Interconnect
) -> LatencyModel:
    """Return the latency model of a model by what was measured of another one on one and two ranks.

    Linear layers go by a family fitted to the other model's, attention by its regressor of ratios to the roofline, and all that
    the other model has not by its bytes.

    Args:
        hardware: Name of a device whose single operations were measured.
        model: The model to predict.
        serving: The engine settings to predict.
        known: The model whose records may be used.
        interconnect: The link that prices collectives.

    Raises:
        InvalidInputError: There is no such device, or nothing of the known model was measured on it.
    """
    with device_folder(hardware) as folder:
        return assemble(operation_table(model, serving), _OtherRecords(folder, known, interconnect), serving)


class _OtherRecords(DeviceLatencies):
    """A device's latencies by the records of one model."""

    def __init__(self, folder: Path, known: ModelSource, interconnect: Interconnect) -> None:
        super().__init__(folder, interconnect)
        tables = [operation_table(known, ServingConfig(tensor_parallel_size=ranks)) for ranks in (1, 2)]
        operations = {op.signature: op for table in tables for op in table.operations if op.signature in self.measured}
        rows = [
            (size, kind.n, kind.k, ns)
            for op in operations.values()
            if isinstance(kind := kind_of(op), LinearLayer)
            for size, ns in zip(self.measured[op.signature].sizes, self.measured[op.signature].measured_ns, strict=True)
        ]
        if not rows:
            raise InvalidInputError(f"{known.name}: nothing of it was measured on {self.hardware.name}; name a model that was")
        m, n, k, latency_ns = np.array(rows).T
        pairs = np.unique(np.stack([n, k]), axis=1, return_inverse=True)[1].ravel()
        self._linear = fit_family(*linear_inputs(self.hardware, m, n, k, 2.0), latency_ns, pairs)
        self._known = operations.keys()
        attention = next(op for op in tables[0].operations if isinstance(kind_of(op), AttentionShape))
        found = super().of(attention, known.name)
        if not isinstance(found, MeasuredAttention):
            raise InvalidInputError(f"{known.name}: its attention was not measured on {self.hardware.name}; name another model")
        self._attention = found.regressor

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation by the other model's records."""
        kind = kind_of(operation)
        if isinstance(kind, LinearLayer):
            return LinearFamily(kind, self.hardware, self._linear)
        if isinstance(kind, AttentionShape):
            return MeasuredAttention(kind, self.hardware, self._attention)
        if isinstance(kind, Collective) or operation.signature in self._known:
            return super().of(operation, model)
        return MovedBytes(self.hardware)
