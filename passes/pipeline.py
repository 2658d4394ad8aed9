"""The passes in order: origins, operations, data flow, costs, canonical form, signature, family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.canonical import canonicalize
from passes.costs import Cost, estimate_cost
from passes.family import Family, find_family
from passes.flow import Flow, find_flow
from passes.operations import Operation, split_operations
from passes.origins import Origins, name_origins
from passes.request_order import request_order
from passes.signature import resolve

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
    """The canonical graph's signature, told apart from those of the graph's other operations."""
    family: Family
    """What it has in common with the same operation over other sizes."""
    request_dims: tuple[str, ...]
    """Its request dimensions, each an expression of the batch, in canonical order."""


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
    known: dict[str, nx.DiGraph[int]] = {}
    analysed = tuple(_analyse(op, origins, known) for op in operations)
    return Analysis(origins, analysed, find_flow(captured, operations))


def _analyse(operation: Operation, origins: Origins, known: dict[str, nx.DiGraph[int]]) -> AnalysedOperation:
    canonical = canonicalize(operation, origins)
    signature = resolve(canonical, known.get)
    known[signature] = canonical
    cost, family = estimate_cost(operation, origins), find_family(canonical)
    return AnalysedOperation(operation, cost, canonical, signature, family, request_order(canonical))
