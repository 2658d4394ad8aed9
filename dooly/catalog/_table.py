"""The table of a model's operations: from its trace, with what layers and steps do of their own, each under its own signature."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dooly.catalog._points import engine_operations
from dooly.engines import trace_model

if TYPE_CHECKING:
    from dbstore import Store
    from dooly.engines import ModelSource, ServingConfig
    from dooly.tracing import TracedModel, TracedOperation


def trace_operations(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace a model, and add what layers and steps do of their own."""
    traced = trace_model(model, serving)
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


def _is_leaf(operation: TracedOperation, traced: TracedModel) -> bool:
    """Tell operations that a leaf module runs from pieces of a container's own code."""
    inside = f"{operation.module}."
    modules = (module for op in traced.operations for module, _ in op.placements)
    return bool(operation.module) and not any(module.startswith(inside) for module in modules)
