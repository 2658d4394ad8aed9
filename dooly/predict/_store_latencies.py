"""What operations take by a store that holds records of operations alone, as imported ones are.

An operation goes by its own records (measured); without any, by what others of its kind or of its graph's family take in the
same environment (family); and where nothing like it was measured and it multiplies no matrices, by what ships of such a device
or by its bytes (estimated).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.catalog import NO_MODEL, key_of
from dooly.errors import MissingOperationError
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._domain import Domain
from dooly.predict._estimated import MovedBytes
from dooly.predict._families import AttentionFamily, ExpertsFamily, LinearFamily
from dooly.predict._family_curve import FamilyCurve
from dooly.predict._fit_hardware import device_folder, listed_hardware
from dooly.predict._hardware import Hardware
from dooly.predict._interconnect import LinkedCollective
from dooly.predict._kept_fits import KeptFits, pack_families, unpack_families
from dooly.predict._kinds import AttentionShape, Collective, LatentAttention, LinearLayer, families_of, kind_of, moves_only
from dooly.predict._measured import CollectiveTable, MeasuredAttention, MeasuredSizes
from dooly.predict._operation import OperationWork
from dooly.predict._recorded import recorded_points
from dooly.predict._recorded_families import attention_families, experts_family, linear_family, mixed_attention
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dbstore import JSON, Environment, Store
    from dooly.catalog import Key
    from dooly.predict._family import FamilyRegressor
    from dooly.predict._features import BatchArrays
    from dooly.predict._interconnect import Interconnect
    from dooly.predict._kinds import Experts, Kind
    from dooly.predict._sources import OperationLatency, Source
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]

_LEAST_NS = 500.0
"""No kernel is faster: tools that round to microseconds say 0."""
_SOME_SMS = 100
"""Multiprocessors of a device that is not known: a scale in the families' features, the same at every point."""


class StoreLatencies:
    """The latencies that a store's records in one environment tell of any operation."""

    def __init__(self, store: Store, environment: Environment, interconnect: Interconnect | None = None) -> None:
        """Take a store, the environment, and a link to price collectives by in place of what was measured of them."""
        self._interconnect = interconnect
        self._store = store
        self._environment = environment
        self._points: dict[Key, tuple[BatchArrays, Floats]] = {}
        self._families: dict[tuple[str, ...], tuple[FamilyRegressor, ...] | None] = {}
        self._kept = KeptFits(store, environment.digest)

    @cached_property
    def known(self) -> Mapping[str, TracedOperation]:
        """Operations that have records, by signature, of all models that were imported into the environment."""
        digest = self._environment.digest
        recorded = {signature for signature, environment in self._store.keys() if environment == digest}  # noqa: SIM118 - no mapping
        documents: list[Any] = [self._store.read_document("traces", name) for name in self._store.documents("traces")]
        found: dict[str, TracedOperation] = {}
        # What a model runs over requests, such as its head, may lie among the operations of no model too: the model's own counts.
        for document in sorted(documents, key=lambda document: document["config"] != NO_MODEL):
            if document["environment"] == digest:
                operations = TracedModel.from_json(document["traced"]).operations
                found |= {op.signature: op for op in operations if op.signature in recorded}
        return found

    @cached_property
    def hardware(self) -> Hardware:
        """Facts of the device: those that ship, or else the rates that its records reach."""
        listed = {hardware.device: hardware for hardware in listed_hardware()}
        if (known := listed.get(self._environment.device)) is not None:
            return known
        return Hardware(**self._kept.get("hardware", list(self.known.values()), lambda: asdict(self._by_records())))

    def of(self, operation: TracedOperation, model: str) -> OperationLatency:
        """Return what predicts an operation.

        Raises:
            MissingOperationError: Nothing covers it; the message names it and what would.
        """
        kind = kind_of(operation)
        if isinstance(kind, Collective) and self._interconnect is not None:
            return LinkedCollective(kind, self._interconnect)
        found = self._own(operation, kind) if operation.signature in self.known else self._family(kind)
        if found is None and moves_only(operation):
            found = self._curve(operation) or self._shipped_curves.get(operation.family) or MovedBytes(self.hardware)
        if found is not None:
            return found
        place = f"{operation.module or operation.name} ({operation.name}, {operation.module_class})"
        remedy = "state a link with --interconnect" if isinstance(kind, Collective) else "profile the model on such a device"
        raise MissingOperationError(
            f"{model}: {place} has no records in the store from {self._environment.device}, nor has enough of its kind; add "
            f"measurements of it with `dooly db import`, or {remedy}"
        )

    def domain(self, traced: TracedModel) -> Domain:
        """Return the largest sizes that all measured operations of a model know."""
        limits: dict[str, list[int]] = {"num_tokens": [], "num_reqs": []}
        longest = []
        for operation in (op for op in traced.operations if op.stage != "engine"):
            kind = kind_of(operation)
            if isinstance(kind, AttentionShape):
                own = [operation] if operation.signature in self.known else self._like(kind)
                num_tokens, num_reqs, context = self._kept.get("limits", own, partial(self._limits, own))
                limits["num_tokens"].append(num_tokens)
                limits["num_reqs"].append(num_reqs)
                longest.append(context)
            elif operation.signature in self.known and not isinstance(kind, Collective):
                limits[operation.request_dims[0]].append(int(self._sizes(operation)[0][-1]))
        return Domain(min(limits["num_tokens"]), min(limits["num_reqs"]), min(longest))

    def _limits(self, operations: Sequence[TracedOperation]) -> list[int]:
        """Return the most tokens, requests and positions of one request that operations were measured over."""
        batches = [self._read(op)[0] for op in operations]
        sizes = ((b.num_tokens, b.num_reqs, b.new + b.computed) for b in batches)
        return [max(int(found.max()) for found in column) for column in zip(*sizes, strict=True)]

    def _read(self, operation: TracedOperation) -> tuple[BatchArrays, Floats]:
        """Return the points of an operation with their latencies in nanoseconds."""
        key = key_of(operation)
        if key not in self._points:
            records = self._store.read(operation.signature, self._environment.digest)
            batches, latency_ns = recorded_points(OperationWork(operation), records)
            self._points[key] = batches, np.maximum(latency_ns, _LEAST_NS)
        return self._points[key]

    def _sizes(self, operation: TracedOperation) -> tuple[Floats, Floats]:
        """Return the growing sizes of an operation of one request dimension with their latencies in nanoseconds."""

        def read() -> JSON:
            batches, latency_ns = self._read(operation)
            sizes = OperationWork(operation).sizes(batches)
            order = np.argsort(sizes)
            return [sizes[order].tolist(), latency_ns[order].tolist()]

        sizes, latency_ns = (np.array(column) for column in self._kept.get("sizes", (operation,), read))
        return sizes, latency_ns

    def _own(self, operation: TracedOperation, kind: Kind | None) -> OperationLatency | None:
        """Return what an operation's own records say; None where they do not cover batches of both kinds."""
        if isinstance(kind, Collective):
            return self._collective(operation, "measured")
        if not isinstance(kind, AttentionShape):
            return MeasuredSizes(*self._sizes(operation))

        def fit() -> JSON:
            batches, latency_ns = self._read(operation)
            work = batches.attention(kind.window)
            if ((work.num_decodes > 0) & (work.num_prefills > 0)).any():
                return pack_families([mixed_attention(self.hardware, kind, work, latency_ns)])
            return pack_families(attention_families(self.hardware, [(kind, work, latency_ns)]))

        # One regressor of batches of every kind, or two of decodes and of prefills.
        parts: Any = unpack_families(self._kept.get("attention", (operation,), fit, asdict(self.hardware)))
        if parts is not None and len(parts) == 1:
            return MeasuredAttention(kind, self.hardware, parts[0])
        return parts and AttentionFamily(kind, self.hardware, parts[0], parts[1], source="measured")

    def _family(self, kind: Kind | None) -> OperationLatency | None:
        """Return what others of a kind say; None where the store has none."""
        others = self._like(kind)
        if kind is None or isinstance(kind, LatentAttention) or not others:
            return None
        if isinstance(kind, Collective):
            return self._collective(others[0], "family")
        regressors: Any = self._regressors(kind, others)
        if regressors is None:
            return None
        if isinstance(kind, AttentionShape):
            return AttentionFamily(kind, self.hardware, *regressors)
        if isinstance(kind, LinearLayer):
            return LinearFamily(kind, self.hardware, *regressors)
        # Records of experts hold what these run beside them, and so does their family.
        return ExpertsFamily(kind, self.hardware, regressors[0], beside=())

    def _curve(self, operation: TracedOperation) -> FamilyCurve | None:
        """Return what others of the family of an operation that only moves bytes say; None where the store has none."""
        members = []
        for other in (op for op in self.known.values() if op.family == operation.family):
            batches, latency_ns = self._read(other)
            _, traffic = OperationWork(other).cost(batches)
            order = np.argsort(traffic)
            members.append((traffic[order], latency_ns[order]))
        return FamilyCurve(tuple(members)) if members else None

    @cached_property
    def _shipped_curves(self) -> Mapping[str, FamilyCurve]:
        """What ships of the device, where it is listed, for families that the store knows nothing of; no record of it says so."""
        for name in (hardware.name for hardware in listed_hardware() if hardware.device == self._environment.device):
            with device_folder(name) as folder:
                curves = DeviceLatencies(folder).curves
            return {family: replace(curve, source="estimated") for family, curve in curves.items()}
        return {}

    def _like(self, kind: Kind | None) -> list[TracedOperation]:
        """Return the operations with records that are of a kind: collectives over as many ranks, others of its families."""
        if kind is None or isinstance(kind, Collective):
            return [op for op in self.known.values() if kind is not None and kind_of(op) == kind]
        known = [(op, kind_of(op)) for op in self.known.values()]
        return [op for op, of in known if type(of) is type(kind) and families_of(of) == families_of(kind)]

    def _regressors(
        self, kind: LinearLayer | AttentionShape | Experts, others: list[TracedOperation]
    ) -> tuple[FamilyRegressor, ...] | None:
        """Return the regressors of a kind's families, fitted at the first use of these records."""
        if (names := families_of(kind)) not in self._families:
            fit = partial(self._fit_families, kind, others)
            self._families[names] = unpack_families(self._kept.get("family", others, fit, names, asdict(self.hardware)))
        return self._families[names]

    def _fit_families(self, kind: LinearLayer | AttentionShape | Experts, others: list[TracedOperation]) -> JSON:
        if isinstance(kind, AttentionShape):
            shapes: Any = [(kind_of(op), *self._read(op)) for op in others]
            worked = [(shape, batches.attention(shape.window), latency_ns) for shape, batches, latency_ns in shapes]
            return pack_families(attention_families(self.hardware, worked))
        fit = linear_family if isinstance(kind, LinearLayer) else experts_family
        sized: Any = [(kind_of(op), *self._sizes(op)) for op in others]
        return pack_families([fit(self.hardware, sized)])

    def _collective(self, operation: TracedOperation, source: Source) -> CollectiveTable:
        """Return the table of a collective over the payloads that an operation was measured with."""
        batches, latency_ns = self._read(operation)
        payload = OperationWork(operation).payload_bytes(batches)
        order = np.argsort(payload)
        return CollectiveTable(payload[order], latency_ns[order], source)

    def _by_records(self) -> Hardware:
        """Return the rates that the records reach, as a device's facts."""
        rates: dict[str, list[float]] = {"flops": [], "bytes": [], "moved": [], "ns": []}
        for operation in self.known.values():
            batches, latency_ns = self._read(operation)
            rates["ns"].append(float(latency_ns.min()))
            if isinstance(kind_of(operation), AttentionShape | Collective):
                continue
            flops, traffic = OperationWork(operation).cost(batches)
            rates["flops"].append(float((1e9 * flops / latency_ns).max()))
            rates["bytes"].append(float((1e9 * traffic / latency_ns).max()))
            if moves_only(operation):
                rates["moved"].append(rates["bytes"][-1])
        # Without any record but attention's, rooflines have a scale all the same.
        bandwidth, flops_per_s = max(rates["bytes"], default=1e12), max(rates["flops"], default=1e14) or 1e14
        device, e = self._environment.device, self._environment
        moved = max(rates["moved"], default=bandwidth)
        facts = (0, bandwidth, flops_per_s, _SOME_SMS, moved, min(rates["ns"]), f"{e.engine} {e.engine_version}", e.source or "")
        return Hardware(device, device, *facts)
