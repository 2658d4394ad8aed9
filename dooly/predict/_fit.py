"""Fit a latency model to the records of a store."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import (
    CUDA_GRAPHS,
    STEP,
    check_kernels,
    check_store,
    feasible_records,
    measured_most,
    pass_medians,
    profiled_model,
    related_operations,
    repeatability,
)
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError, spell
from dooly.predict._domain import Domain
from dooly.predict._fit_hardware import default_serving, host_times, known_hardware, listed_hardware, load_hardware_model
from dooly.predict._fit_imported import load_imported_model
from dooly.predict._fit_sizes import fit_sizes
from dooly.predict._fit_sparse import as_fit, fit_sparse
from dooly.predict._fitted import FittedOperation, layer_features, layer_terms, step_features, step_terms
from dooly.predict._fused import fused_linear_layers, without_quantising
from dooly.predict._kept_fits import KeptFits
from dooly.predict._latency_model import LatencyModel
from dooly.predict._measured import MeasuredOperation, MeasuredSizes
from dooly.predict._operation import OperationWork
from dooly.predict._recorded import recorded_batches, recorded_sizes
from dooly.predict._regressor import Regressor, fit_regressor
from dooly.predict._selections import Selections
from dooly.predict._step_parts import laid_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbstore import JSON, Environment, Record, Store
    from dooly.predict._fit_sparse import Records
    from dooly.predict._fitted import FittedLayer
    from dooly.predict._interconnect import Interconnect
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedModel, TracedOperation


def load_latency_model(  # noqa: PLR0913 - a store and its environment, or hardware and its link
    store: Store | None = None,
    model: ModelSource | None = None,
    serving: ServingConfig | None = None,
    environment: Environment | None = None,
    *,
    hardware: str | None = None,
    interconnect: Interconnect | None = None,
) -> LatencyModel:
    """Return the latency model of a model: fitted to what a store holds about it, or for a device whose measurements ship.

    Args:
        store: An open store, where no `hardware` is named.
        model: The model, by its configuration.
        serving: The engine settings that the model was profiled or imported with, or for `hardware`, those to predict; there
            None stands for `default_serving`.
        environment: The environment that it was profiled in, or the same in CUDA graphs, to predict these from the eager engine's
            records; None where the store holds the model in one only, and for a GPU, to go by `serving.enforce_eager`.
        hardware: Name of a device that `dooly hardware` lists, or a folder of such data, in place of a store.
        interconnect: A link between ranks that prices collectives, in place of what was measured of them, on `hardware` or by
            imported records.

    Raises:
        MissingOperationError: The store lacks the model, the environment, or an operation, and the message names the command that
            measures it; or nothing that was measured on `hardware` covers an operation.
        InvalidInputError: There is no such hardware; the store holds the model in several environments, or several ranks are
            asked of it; `store` is no open store, or there are both a store and hardware; or an eager engine is asked for in an
            environment of CUDA graphs.

    Examples:
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> step = latency.step(dooly.Batch((1, 1, 512), (900, 3000, 0)))
        >>> 0.002 < step.seconds < 0.05
        True
    """
    if not isinstance(model, ModelSource):
        raise InvalidInputError(f"load_latency_model: model: {spell(model)} is no model; give what dooly.find_model returns")
    if hardware is not None:
        if store is not None or environment is not None:
            raise InvalidInputError("load_latency_model: hardware stands in place of a store and an environment; give either")
        return load_hardware_model(hardware, model, serving or default_serving(model, hardware), interconnect)
    if store is None:
        raise InvalidInputError(
            "load_latency_model: neither a store nor hardware is given; give dooly.Store.open(PATH) or hardware='h200'"
        )
    serving = serving or ServingConfig()
    opened = check_store("load_latency_model", store)
    check_kernels(serving)
    in_graphs = environment is not None and environment.execution_mode == CUDA_GRAPHS
    if in_graphs and serving.enforce_eager:
        raise InvalidInputError("--enforce-eager: the environment asked for runs CUDA graphs; ask for one of them")
    traced, measured = profiled_model(opened, model, serving, environment)
    if measured.source is not None:
        return _selecting(load_imported_model(opened, traced, measured, serving, interconnect), opened)
    if interconnect is not None:
        raise InvalidInputError("--interconnect: prices the collectives of --hardware and of imported records only; leave it out")
    on_gpu = measured.device_kind == "cuda"
    in_graphs |= environment is None and on_gpu and not serving.enforce_eager
    return _selecting(fit_latency_model(opened, traced, measured, serving, in_graphs=in_graphs), opened)


def _selecting(latency: LatencyModel, store: Store) -> LatencyModel:
    """Return a latency model that prices selections by a store, or by what ships of its device."""
    hardware = next((hardware for hardware in listed_hardware() if hardware.device == latency.environment.device), None)
    latency.selections = Selections(latency.traced, latency.environment, hardware, store)
    return latency


def fit_latency_model(
    store: Store, traced: TracedModel, environment: Environment, serving: ServingConfig | None = None, *, in_graphs: bool = False
) -> LatencyModel:
    """Fit the latency model of a traced model in one environment, this tool's own or one of imported records.

    Args:
        store: The store with the records.
        traced: The traced model.
        environment: The environment of the records.
        serving: How the engine serves: on a GPU, which graphs it captures, and whether it schedules a step while another runs.
        in_graphs: Whether to predict an engine in CUDA graphs from the records of the eager one: what layers and steps take
            beyond their operations in the records is the eager engine's host, and falls away.

    Raises:
        MissingOperationError: The store lacks an operation of the model.
    """
    if environment.source is not None:
        return load_imported_model(store, traced, environment, serving or ServingConfig(), None)
    records = _reader(store, environment, traced.model)
    (step,) = (op for op in traced.operations if op.stage == "engine" and op.name == STEP)
    attention = [op for op in traced.operations if _sees_contexts(op)]
    kept = KeptFits(store, environment.digest)

    domain = Domain.from_json(kept.get("domain", (step, *attention), partial(_measured_domain, step, attention, records)))
    sparse, sparse_name = _sparse_fits([op for op in traced.operations if op.stage != "engine"], domain, store, kept, records)
    known_device = known_hardware(environment.device) if in_graphs else None
    fused = fused_linear_layers(traced) if in_graphs else {}
    latencies: dict[str, OperationLatency] = {}
    names: dict[str, str] = {}

    def fitted(operation: TracedOperation) -> FittedOperation:
        work, signature = OperationWork(operation), operation.signature
        if signature not in latencies:
            alone = work.counts <= {"num_reqs"} and domain.num_reqs == 1
            fit = partial(_fit_operation, work, records, at_one_size=alone)
            latencies[signature] = _latency(sparse.get(signature) or kept.get("operation", (operation,), fit, alone))
            names[signature] = sparse_name if signature in sparse else kept.name("operation", (operation,), alone)
        latency = without_quantising(latencies[signature], fused.get(signature), known_device)
        return FittedOperation(operation, work, latency)

    parts, serving = laid_out(traced, fitted), serving or ServingConfig()
    ahead = environment.device_kind == "cuda" and serving.schedules_ahead
    if in_graphs:
        captured, host = serving.cudagraph_capture_sizes, host_times(environment.device, traced, serving)
        environment = replace(environment, execution_mode=CUDA_GRAPHS)
        return LatencyModel(
            *(traced, environment, parts, domain),
            host=host,
            captured_tokens=captured,
            schedules_ahead=ahead,
            limited_by=known_device,
        )
    layers = tuple(_with_own_time(layer, records, kept, names) for layer in parts.layers)
    regressor = Regressor.from_json(kept.get("step", (step,), partial(_fit_own, step, records)))
    return LatencyModel(traced, environment, replace(parts, layers=layers, own=regressor), domain, schedules_ahead=ahead)


def _sees_contexts(operation: TracedOperation) -> bool:
    return operation.stage != "engine" and operation.depends_on_context


def _measured_domain(step: TracedOperation, attention: Sequence[TracedOperation], records: Records) -> JSON:
    """Return what steps and attention were measured over."""
    return Domain.of(recorded_batches(records(step))[0], [recorded_batches(records(op))[0] for op in attention]).to_json()


def _fit_own(step: TracedOperation, records: Records) -> JSON:
    """Fit what the engine does around the model to its records."""
    found = records(step)
    batches, latency_ns = recorded_batches(found)
    return fit_regressor(step_terms(batches), step_features(batches), latency_ns, pass_medians(found)).to_json()


def _sparse_fits(
    operations: Sequence[TracedOperation], domain: Domain, store: Store, kept: KeptFits, records: Records
) -> tuple[Mapping[str, JSON], str]:
    """Return by signature the fits of operations with few points, and the name that these are kept under.

    Whether sweeps are sparse goes by the grid over the domain; what lies between, by other models' operations too.
    """
    related = related_operations(operations, store, kept.environment)
    involved, known = (*operations, *related), partial(measured_most, related, store, kept.environment)
    fits = kept.get("sparse", involved, partial(fit_sparse, operations, records, domain, known), domain.to_json())
    return fits, kept.name("sparse", involved, domain.to_json())


def _fit_operation(work: OperationWork, records: Records, *, at_one_size: bool) -> JSON:
    """Fit an operation to its records; return its regressor and, where it goes by its points, these."""
    found = records(work.operation)
    if work.is_attention:
        batches, latency_ns = recorded_batches(found)
        return as_fit(fit_regressor(work.terms(batches), work.features(batches), latency_ns, pass_medians(found)))
    regressor = fit_sizes(work, found, at_one_size=at_one_size)
    is_single = len(work.operation.request_dims) == 1 and regressor.trees is not None
    # The points may be known better than what is fitted through them: a kernel may take half as long again at one size.
    goes_by_points = is_single and repeatability(found) < regressor.relative_error
    points = [column.tolist() for column in recorded_sizes(work, found)] if goes_by_points else None
    return as_fit(regressor, points)


def _latency(fit: JSON) -> OperationLatency:
    """Return the latency that a fit in JSON stands for."""
    fitted = MeasuredOperation(Regressor.from_json(fit["regressor"]), fit["source"])
    if fit["points"] is None:
        return fitted
    sizes, known_ns = (np.array(column) for column in fit["points"])
    return MeasuredSizes(sizes, known_ns, fitted, fit["source"], fit["known_error"])


def _with_own_time(layer: FittedLayer, records: Records, kept: KeptFits, names: Mapping[str, str]) -> FittedLayer:
    """Return a layer with what it takes beyond its operations, by its records, given the name of each operation's fit."""
    operation = layer.operation
    if operation is None:
        return layer

    def fit() -> JSON:
        found = records(operation)
        batches, latency_ns = recorded_batches(found)
        inner = np.zeros(len(latency_ns))
        for member in layer.members:
            inner += member.latency_ns(batches)
        return fit_regressor(layer_terms(inner, batches), layer_features(batches), latency_ns, pass_medians(found)).to_json()

    members = [names[member.operation.signature] for member in layer.members]
    return replace(layer, regressor=Regressor.from_json(kept.get("layer", (operation,), fit, members)))


def _reader(store: Store, environment: Environment, model: str) -> Records:
    """Return what reads the feasible records of an operation, once."""
    known: dict[str, tuple[Record, ...]] = {}

    def read(operation: TracedOperation) -> tuple[Record, ...]:
        if operation.signature not in known:
            known[operation.signature] = _records(store, operation, environment, model)
        return known[operation.signature]

    return read


def _records(store: Store, operation: TracedOperation, environment: Environment, model: str) -> tuple[Record, ...]:
    """Return the feasible records of an operation of a served model."""
    place = f"{environment.device} with {environment.attention_backend}"
    remedies = (f"run `dooly profile {model} --db PATH`", f"profile {model} with smaller limits")
    return feasible_records(store, operation, environment, place, remedies)
