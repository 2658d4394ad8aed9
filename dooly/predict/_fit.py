"""Fit a latency model to the records of a store."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import (
    CUDA_GRAPHS,
    LAYER,
    STEP,
    batch_at,
    check_store,
    feasible_records,
    layer_of,
    medians,
    profiled_model,
)
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import InvalidInputError
from dooly.predict._domain import Domain
from dooly.predict._features import BatchArrays
from dooly.predict._fit_hardware import host_times, load_hardware_model
from dooly.predict._fit_sizes import fit_sizes
from dooly.predict._fitted import FittedLayer, FittedOperation, layer_features, layer_terms, step_features, step_terms
from dooly.predict._latency_model import LatencyModel
from dooly.predict._measured import MeasuredOperation
from dooly.predict._operation import OperationWork
from dooly.predict._regressor import Regressor, fit_regressor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dbstore import Environment, Record, Store
    from dooly.latency import HostTimes
    from dooly.predict._interconnect import Interconnect
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]


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
        serving: The engine settings that the model was profiled with, or for `hardware`, those to predict.
        environment: The environment that it was profiled in, or the same in CUDA graphs, to predict these from the eager engine's
            records; None where the store holds the model in one only, and for a GPU, to go by `serving.enforce_eager`.
        hardware: Name of a device that `dooly hardware` lists, or a folder of such data, in place of a store.
        interconnect: A link between its ranks that prices collectives, in place of what was measured of them.

    Raises:
        MissingOperationError: The store lacks the model, the environment, or an operation, and the message names the command that
            measures it; or nothing that was measured on `hardware` covers an operation.
        InvalidInputError: There is no such hardware; the store holds the model in several environments, or several ranks are
            asked of it; `store` is no open store, or there are both a store and hardware; or an eager engine is asked for in an
            environment of CUDA graphs.
    """
    if model is None:
        raise InvalidInputError("load_latency_model: model: none given; give what dooly.find_model returns")
    serving = serving or ServingConfig()
    if hardware is not None:
        if store is not None or environment is not None:
            raise InvalidInputError("load_latency_model: hardware stands in place of a store and an environment; give either")
        return load_hardware_model(hardware, model, serving, interconnect)
    if interconnect is not None:
        raise InvalidInputError("--interconnect: prices the collectives of --hardware only; name the hardware, or leave it out")
    opened = check_store("load_latency_model", store)
    serving.require_one_rank()
    in_graphs = environment is not None and environment.execution_mode == CUDA_GRAPHS
    if in_graphs and serving.enforce_eager:
        raise InvalidInputError("--enforce-eager: the environment asked for runs CUDA graphs; ask for one of them")
    traced, measured = profiled_model(opened, model, serving, environment)
    on_gpu = measured.device_kind == "cuda"
    in_graphs |= environment is None and on_gpu and not serving.enforce_eager
    host = host_times(measured.device, traced, serving) if in_graphs else None
    return fit_latency_model(opened, traced, measured, host, schedules_ahead=on_gpu and serving.async_scheduling)


def fit_latency_model(
    store: Store, traced: TracedModel, environment: Environment, host: HostTimes | None = None, *, schedules_ahead: bool = False
) -> LatencyModel:
    """Fit the latency model of a traced model in one environment.

    Args:
        store: The store with the records.
        traced: The traced model.
        environment: The environment of the records.
        host: To predict an engine in CUDA graphs from the records of the eager one, what its host takes: what layers and steps
            take beyond their operations in the records is the eager engine's host, and falls away.
        schedules_ahead: Whether the engine schedules a step while another runs.

    Raises:
        MissingOperationError: The store lacks an operation of the model.
    """
    records = {op.signature: _records(store, op, environment, traced.model) for op in traced.operations}
    rows = [op for op in traced.operations if op.stage != "engine"]
    engine = [op for op in traced.operations if op.stage == "engine"]
    (step,) = (op for op in engine if op.name == STEP)
    batches, latency_ns = _batches(records[step.signature])
    attention = {op.signature: _batches(records[op.signature])[0] for op in rows if op.depends_on_context}
    domain = Domain.of(batches, list(attention.values()))
    fitted: dict[str, MeasuredOperation] = {}
    for operation in rows:
        if operation.signature not in fitted:
            work = OperationWork(operation)
            fitted[operation.signature] = MeasuredOperation(_fit_operation(work, records[operation.signature], domain))
    outside = tuple(
        FittedOperation(op, OperationWork(op), fitted[op.signature])
        for op in rows
        for module, count in op.placements
        if layer_of(module) is None
        for _ in range(count)
    )
    layers = tuple(_layer(op, rows, fitted, records[op.signature] if host is None else None) for op in engine if op.name == LAYER)
    own = fit_regressor(step_terms(batches), step_features(batches), latency_ns) if host is None else None
    found = environment if host is None else replace(environment, execution_mode=CUDA_GRAPHS)
    return LatencyModel(traced, found, outside, layers, own, domain, host=host, schedules_ahead=schedules_ahead)


def _fit_operation(work: OperationWork, records: Sequence[Record], domain: Domain) -> Regressor:
    if work.is_attention:
        batches, latency_ns = _batches(records)
        return fit_regressor(work.terms(batches), work.features(batches), latency_ns)
    return fit_sizes(work, records, at_one_size=work.counts <= {"num_reqs"} and domain.num_reqs == 1)


def _layer(
    layer: TracedOperation, rows: list[TracedOperation], fitted: dict[str, MeasuredOperation], records: Sequence[Record] | None
) -> FittedLayer:
    members = tuple(
        FittedOperation(op, OperationWork(op), fitted[op.signature])
        for op in rows
        for module, _ in op.placements
        if layer_of(module) == layer.module
    )
    if records is None:
        return FittedLayer(layer, members, None)
    batches, latency_ns = _batches(records)
    inner = np.zeros(len(latency_ns))
    for member in members:
        inner += member.latency_ns(batches)
    regressor: Regressor = fit_regressor(layer_terms(inner, batches), layer_features(batches), latency_ns)
    return FittedLayer(layer, members, regressor)


def _batches(records: Sequence[Record]) -> tuple[BatchArrays, Floats]:
    points, latency_ns = medians(records)
    return BatchArrays.of([batch_at(point) for point in points]), latency_ns


def _records(store: Store, operation: TracedOperation, environment: Environment, model: str) -> tuple[Record, ...]:
    """Return the feasible records of an operation of a served model."""
    place = f"{environment.device} with {environment.attention_backend}"
    remedies = (f"run `dooly profile {model} --db PATH`", f"profile {model} with smaller limits")
    return feasible_records(store, operation, environment, place, remedies)
