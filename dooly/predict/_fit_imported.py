"""The latency model of a model by records of operations alone, as `dooly db import` writes them: steps are their sums."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dooly.catalog import CUDA_GRAPHS
from dooly.errors import InvalidInputError
from dooly.predict._fit_hardware import host_times, known_hardware
from dooly.predict._fitted import FittedOperation
from dooly.predict._fused import fused_linear_layers, without_quantising
from dooly.predict._latency_model import LatencyModel
from dooly.predict._operation import OperationWork
from dooly.predict._step_parts import laid_out
from dooly.predict._store_latencies import StoreLatencies

if TYPE_CHECKING:
    from dbstore import Environment, Store
    from dooly.engines import ServingConfig
    from dooly.predict._interconnect import Interconnect
    from dooly.predict._sources import OperationLatency
    from dooly.tracing import TracedModel, TracedOperation


def load_imported_model(
    store: Store, traced: TracedModel, environment: Environment, serving: ServingConfig, interconnect: Interconnect | None
) -> LatencyModel:
    """Return the latency model of what another tool measured: kernels alone, so the engine is one in CUDA graphs.

    Raises:
        InvalidInputError: They ask for an engine that launches each kernel on its own, which no tool measured.
        MissingOperationError: Nothing in the store covers an operation.
    """
    if serving.enforce_eager:
        raise InvalidInputError(
            f"--enforce-eager: {environment.source} tells what kernels take, not what launching each of them does; leave it out, "
            "or profile such a device"
        )
    device = StoreLatencies(store, environment, interconnect)
    latencies: dict[str, OperationLatency] = {}
    fused = fused_linear_layers(traced)

    def fitted(operation: TracedOperation) -> FittedOperation:
        if operation.signature not in latencies:
            latency = device.of(operation, traced.model)
            latencies[operation.signature] = without_quantising(latency, fused.get(operation.signature), device.hardware)
        return FittedOperation(operation, OperationWork(operation), latencies[operation.signature], device.hardware.gap_ns)

    in_graphs = replace(environment, execution_mode=CUDA_GRAPHS)
    host, ahead = host_times(environment.device, traced, serving), serving.schedules_ahead
    parts, captured = laid_out(traced, fitted), serving.cudagraph_capture_sizes
    domain = device.domain(traced)
    return LatencyModel(
        *(traced, in_graphs, parts, domain),
        host=host,
        captured_tokens=captured,
        schedules_ahead=ahead,
        limited_by=known_hardware(environment.device),
    )
