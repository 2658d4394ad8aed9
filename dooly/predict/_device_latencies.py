"""What a device takes for operations of any configuration, from the measurements that ship with Dooly.

Of each operation it says where its latency is from: a table of just this operation (measured), a family's regressor or what other
members of its family took (family), or the bytes that it moves over the bandwidth that such operations reach (estimated).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import MissingOperationError
from dooly.predict._estimated import MovedBytes
from dooly.predict._families import AttentionFamily, ExpertsFamily, LinearFamily
from dooly.predict._family import FamilyRegressor
from dooly.predict._family_curve import FamilyCurve
from dooly.predict._hardware import Hardware
from dooly.predict._interconnect import LinkedCollective
from dooly.predict._kinds import AttentionShape, Collective, Experts, LinearLayer, kind_of, moves_only, router_of
from dooly.predict._measured import CollectiveTable, MeasuredAttention, MeasuredSizes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._interconnect import Interconnect
    from dooly.predict._sources import OperationLatency, Source
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]

_DTYPES = ("bfloat16", "float16")
"""Element types that the families were measured in, or that take as long."""


class DeviceLatencies:
    """The latencies of a device whose measurements lie in a folder: facts, families, tables of collectives."""

    def __init__(self, folder: Path, interconnect: Interconnect | None = None) -> None:
        """Take a folder, and a link to price collectives by in place of what was measured of them."""
        self._folder = folder
        self._interconnect = interconnect
        self.hardware = Hardware.read(folder)

    @cached_property
    def collectives(self) -> Mapping[Collective, CollectiveTable]:
        """Tables by collective."""
        file = self._folder / "collectives.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        tables = {}
        for name, (payload, latency_ns) in found.items():
            operator, _, ranks = name.rpartition("-")
            tables[Collective(operator, int(ranks))] = CollectiveTable(payload, latency_ns)
        return tables

    @cached_property
    def measured(self) -> Mapping[str, MeasuredSizes]:
        """What was measured of single operations, by signature."""
        file = self._folder / "measured.npz"
        if not file.is_file():
            return {}
        with np.load(file, allow_pickle=False) as arrays:
            return {signature: MeasuredSizes(*arrays[signature]) for signature in arrays.files}

    @cached_property
    def curves(self) -> Mapping[str, FamilyCurve]:
        """What was measured of operations that multiply no matrices, by their families: here, or else on a device like it."""
        return self._read_curves("carried", "estimated") | self._read_curves("curves", "family")

    def _read_curves(self, name: str, source: Source) -> dict[str, FamilyCurve]:
        file = self._folder / f"{name}.npz"
        if not file.is_file():
            return {}
        members: dict[str, list[tuple[Floats, Floats]]] = {}
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                members.setdefault(key.partition("-")[0], []).append(tuple(arrays[key]))
        return {family: FamilyCurve(tuple(found), source) for family, found in members.items()}

    @cached_property
    def linear(self) -> FamilyRegressor:
        """The family of linear layers."""
        return FamilyRegressor.load(self._folder / "linear.cbm")

    @cached_property
    def experts(self) -> FamilyRegressor:
        """The family of mixtures of experts."""
        return FamilyRegressor.load(self._folder / "experts.cbm")

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
        if (own := self.measured.get(operation.signature)) is not None:
            if isinstance(kind, LinearLayer) and self._has("linear"):
                return replace(own, beyond=LinearFamily(kind, self.hardware, self.linear))
            return own
        found: OperationLatency | None = None
        if isinstance(kind, Collective):
            found = self._collective(kind, operation, model)
        elif kind is None and moves_only(operation):
            found = self.curves.get(operation.family) or MovedBytes(self.hardware)
        elif kind is None:
            found = None
        elif kind.dtype in _DTYPES:
            found = self._family(kind, operation)
        if found is not None:
            return found
        raise MissingOperationError(
            f"{model}: {operation.module or operation.name} ({operation.module_class}) has no family in what was measured on "
            f"{self.hardware.name}; profile the model on such a device with `dooly profile`, and simulate with --db"
        )

    def _family(self, kind: LinearLayer | AttentionShape | Experts, operation: TracedOperation) -> OperationLatency | None:
        """Return what predicts an operation by others of its kind, or attention by a table of its own; None without such."""
        if isinstance(kind, AttentionShape):
            own = self._folder / f"attention-{operation.signature}.cbm"
            if own.is_file():
                return MeasuredAttention(kind, self.hardware, FamilyRegressor.load(own))
            return AttentionFamily(kind, self.hardware, *self.attention) if self._has("decodes") else None
        if isinstance(kind, LinearLayer):
            return LinearFamily(kind, self.hardware, self.linear) if self._has("linear") else None
        router = router_of(operation)
        linear = None if router is None else LinearFamily(router, self.hardware, self.linear)
        return ExpertsFamily(kind, self.hardware, self.experts, linear) if self._has("experts") else None

    def _has(self, family: str) -> bool:
        return (self._folder / f"{family}.cbm").is_file()

    def _collective(self, wanted: Collective, operation: TracedOperation, model: str) -> OperationLatency:
        if self._interconnect is not None:
            return LinkedCollective(wanted, self._interconnect)
        # Gathering on one rank moves what gathering on all does into that rank, by the same links.
        operator = "all_gather" if wanted.operator == "gather" else wanted.operator
        if (table := self.collectives.get(Collective(operator, wanted.num_ranks))) is not None:
            return table
        known = sorted(c.num_ranks for c in self.collectives if c.operator == operator)
        raise MissingOperationError(
            f"{model}: {operation.module} needs {wanted.operator} over {wanted.num_ranks} ranks; {self.hardware.name} has it "
            f"over {', '.join(map(str, known)) or 'none'} only; choose --tensor-parallel-size accordingly, or state a link with "
            "--interconnect"
        )
