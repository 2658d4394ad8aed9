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
from dooly.predict._estimated import MovedBytes, Roofline
from dooly.predict._families import AttentionFamily, BlockScaledLinear, ExpertsFamily, LinearFamily, MarlinExperts
from dooly.predict._family import FamilyRegressor
from dooly.predict._family_curve import FamilyCurve
from dooly.predict._hardware import Hardware
from dooly.predict._interconnect import LinkedCollective
from dooly.predict._kinds import (
    MARLIN,
    AttentionShape,
    Collective,
    Experts,
    LatentAttention,
    LinearLayer,
    by_marlin,
    families_of,
    kind_of,
    moves_only,
    products_beside,
)
from dooly.predict._marlin import MarlinCosts
from dooly.predict._measured import CollectiveTable, MeasuredAttention, MeasuredSizes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._interconnect import Interconnect
    from dooly.predict._kinds import Kind
    from dooly.predict._sources import OperationLatency, Source
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]


class DeviceLatencies:
    """The latencies of a device whose measurements lie in a folder: facts, families, tables of collectives."""

    def __init__(self, folder: Path, interconnect: Interconnect | None = None) -> None:
        """Take a folder, and a link to price collectives by in place of what was measured of them."""
        self._folder = folder
        self._interconnect = interconnect
        self.hardware = Hardware.read(folder)
        self._families: dict[str, FamilyRegressor] = {}

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

    @cached_property
    def _marlin(self) -> MarlinCosts | None:
        """What experts cost by Marlin; None where nobody measured it."""
        file = self._folder / f"{MARLIN}.json"
        return MarlinCosts.read(file) if file.is_file() else None

    def _read_curves(self, name: str, source: Source) -> dict[str, FamilyCurve]:
        file = self._folder / f"{name}.npz"
        if not file.is_file():
            return {}
        members: dict[str, list[tuple[Floats, Floats]]] = {}
        with np.load(file, allow_pickle=False) as arrays:
            for key in arrays.files:
                members.setdefault(key.partition("-")[0], []).append(tuple(arrays[key]))
        return {family: FamilyCurve(tuple(found), source) for family, found in members.items()}

    def families(self, kind: Kind) -> tuple[FamilyRegressor, ...] | None:
        """Return the regressors that price a kind, by `families_of`; None where one of them was not measured."""
        names = families_of(kind)
        files = [self._file(name) for name in names]
        if not all(file.is_file() for file in files):
            return None
        for name, file in zip(names, files, strict=True):
            if name not in self._families:
                self._families[name] = FamilyRegressor.load(file)
        return tuple(self._families[name] for name in names)

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation on the device.

        Raises:
            MissingOperationError: Nothing covers it; the message names it and what would.
        """
        kind = kind_of(operation)
        if (own := self.measured.get(operation.signature)) is not None:
            family = self._linear_layer(kind) if isinstance(kind, LinearLayer) else None
            return replace(own, beyond=family or Roofline(self.hardware))
        found: OperationLatency | None = None
        if isinstance(kind, Collective):
            found = self._collective(kind, operation, model)
        elif kind is None and moves_only(operation):
            found = self.curves.get(operation.family) or MovedBytes(self.hardware)
        elif kind is not None:
            found = self._family(kind, operation)
        if found is not None:
            return found
        raise MissingOperationError(
            f"{model}: {operation.module or operation.name} ({operation.module_class}) has no family in what was measured on "
            f"{self.hardware.name}; profile the model on such a device with `dooly profile`, and simulate with --db"
        )

    def _family(
        self, kind: LinearLayer | AttentionShape | LatentAttention | Experts, operation: TracedOperation
    ) -> OperationLatency | None:
        """Return what predicts an operation by others of its kind, or attention by a table of its own; None without such."""
        if isinstance(kind, LinearLayer):
            return self._linear_layer(kind)
        if isinstance(kind, Experts):
            return self._experts(kind, products_beside(operation) or ())
        if isinstance(kind, AttentionShape) and (own := self._file(f"attention-{operation.signature}")).is_file():
            return MeasuredAttention(kind, self.hardware, FamilyRegressor.load(own))
        if (regressors := self.families(kind)) is None:
            return None
        decodes, prefills = regressors
        return AttentionFamily(kind, self.hardware, decodes, prefills)

    def _experts(self, experts: Experts, beside: tuple[LinearLayer, ...]) -> OperationLatency | None:
        """Return what predicts experts with the products that they run too; None where one of all that is unknown."""
        known = tuple(found for layer in beside if (found := self._linear_layer(layer)) is not None)
        if len(known) < len(beside):
            return None
        if by_marlin(experts):
            costs = self._marlin
            return None if costs is None or experts.dtype not in costs.weight_byte_ns else MarlinExperts(experts, costs, known)
        regressors = self.families(experts)
        return None if regressors is None else ExpertsFamily(experts, self.hardware, regressors[0], known)

    def _linear_layer(self, layer: LinearLayer) -> OperationLatency | None:
        """Return what predicts a product by its family, and where that knows launches alone by a nearer one."""
        own = self._linear_family(layer)
        launches_ns = self.hardware.launches_ns.get(families_of(layer)[0])
        single = None if launches_ns is None else self._linear_family(replace(layer, dtype="fp8"))
        return own if own is None or single is None or launches_ns is None else BlockScaledLinear(own, single, launches_ns)

    def _linear_family(self, layer: LinearLayer) -> LinearFamily | None:
        if layer.dtype == "float32":  # a router's, which no table times: as one in bfloat16, at its own bytes
            found = self._linear_family(replace(layer, dtype="bfloat16"))
            return None if found is None else replace(found, layer=layer, source="estimated")
        regressors = self.families(layer)
        return None if regressors is None else LinearFamily(layer, self.hardware, regressors[0])

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.cbm.xz"

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
