"""The table of a model's operations: from its trace, with what layers and steps do of their own, each under its own signature."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dooly.catalog._points import engine_operations
from dooly.dtypes import item_bytes
from dooly.engines import trace_model

if TYPE_CHECKING:
    from collections.abc import Collection

    from dbstore import Store
    from dooly.engines import ModelSource, ServingConfig
    from dooly.tracing import TracedModel, TracedOperation


def trace_operations(model: ModelSource, serving: ServingConfig, hardware: str | None = None) -> TracedModel:
    """Trace a model, on the device at hand or as for another, and add what layers and steps do of their own."""
    traced = _with_prepared_inputs(trace_model(model, serving, hardware=hardware))
    own_code = [op for op in traced.operations if not _is_leaf(op, traced)]
    leaves = tuple(op for op in traced.operations if _is_leaf(op, traced))
    traced = replace(traced, operations=leaves)
    return replace(traced, operations=(*leaves, *engine_operations(traced, own_code)))


def told_apart(traced: TracedModel, store: Store) -> TracedModel:
    """Return a traced model in which no operation goes by a signature that the store knows as another operation's."""
    from passes.signature import from_json, resolve

    known = set(store.documents("operations"))
    placed: dict[str, Any] = {}

    def holder(signature: str) -> Any:  # noqa: ANN401 - a networkx graph
        if signature in known and signature not in placed:
            placed[signature] = from_json(store.read_document("operations", signature))
        return placed.get(signature)

    def tell(operation: TracedOperation) -> TracedOperation:
        graph = from_json(operation.canonical)
        signature = resolve(graph, holder)
        placed[signature] = graph
        return replace(operation, signature=signature)

    return replace(traced, operations=tuple(op if op.stage == "engine" else tell(op) for op in traced.operations))


def _with_prepared_inputs(traced: TracedModel) -> TracedModel:
    """Return a model in which quantising activations is part of the layer that multiplies them.

    An engine's linear layer calls a module of its own for it, so that its time holds both.
    """
    layers = {path for op in traced.operations if op.request_flops != "0" for path, _ in op.placements}
    return replace(traced, operations=tuple(op for op in traced.operations if not (_quantises(op) and _is_inside(op, layers))))


def _quantises(operation: TracedOperation) -> bool:
    """Tell whether an operation makes its input into elements of a byte, and multiplies nothing."""
    return operation.request_flops == "0" and bool(operation.outputs) and item_bytes(operation.outputs[0].dtype) == 1


def _is_inside(operation: TracedOperation, modules: Collection[str]) -> bool:
    parts = operation.module.split(".")
    return any(".".join(parts[:depth]) in modules for depth in range(1, len(parts)))


def _is_leaf(operation: TracedOperation, traced: TracedModel) -> bool:
    """Tell operations that a leaf module runs, and compiled pieces, from pieces of a container's own code."""
    if operation.is_piece:
        return True
    inside = f"{operation.module}."
    modules = (module for op in traced.operations for module, _ in op.placements)
    return bool(operation.module) and not any(module.startswith(inside) for module in modules)
