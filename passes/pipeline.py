"""The passes in order: origins, operations, data flow, costs, canonical form, signature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.canonical import canonicalize, request_order
from passes.costs import Cost, estimate_cost
from passes.flow import Flow, find_flow
from passes.operations import Operation, split_operations
from passes.origins import Origins, name_origins
from passes.signature import sign

if TYPE_CHECKING:
    import networkx as nx

    from passes.graph import CapturedGraph


@dataclass(frozen=True, slots=True)
class AnalysedOperation:
    """An operation with all that the passes found out about it."""

    operation: Operation
    """The operation itself."""
    cost: Cost
    """Its closed-form cost over named symbols."""
    canonical: nx.DiGraph[int]
    """Its canonical graph."""
    signature: str
    """The canonical graph's hash."""
    request_dims: tuple[str, ...]
    """Names of its request dimensions, in canonical order."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the passes say about one captured graph."""

    origins: Origins
    """Where each symbol comes from."""
    operations: tuple[AnalysedOperation, ...]
    """The operations, in the order they run."""
    flow: Flow
    """Which of them feeds which."""


def analyse(captured: CapturedGraph) -> Analysis:
    """Run all passes over a captured graph."""
    origins = name_origins(captured)
    operations = split_operations(captured, origins)
    return Analysis(origins, tuple(_analyse(op, origins) for op in operations), find_flow(captured, operations))


def _analyse(operation: Operation, origins: Origins) -> AnalysedOperation:
    canonical = canonicalize(operation, origins)
    cost = estimate_cost(operation, origins)
    return AnalysedOperation(operation, cost, canonical, sign(canonical), request_order(canonical))
