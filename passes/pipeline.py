"""The passes in order, as data: each has a name, by which its result goes, and names what it reads.

So one can read what each pass found as soon as it has run, stop after any of them, or put another one between two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from passes._errors import PassError
from passes.canonical import canonicalize
from passes.costs import Cost, estimate_cost
from passes.family import Family, find_family
from passes.flow import Flow, find_flow
from passes.operations import split_operations
from passes.origins import Origins, name_origins
from passes.pieces import split_pieces
from passes.request_order import request_order
from passes.signature import sign_apart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import networkx as nx

    from passes.graph import CapturedGraph
    from passes.operation import Operation

CAPTURED = "captured"
"""Name of the captured graph among what passes read."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a pipeline: a pure function from earlier results to a value."""

    name: str
    """What it and its result are called."""
    run: Callable[..., Any]
    """The function."""
    reads: tuple[str, ...]
    """What it is called with: names of passes before it, or `CAPTURED`."""
    for_each: bool = False
    """Whether it runs once for each item of the first result that it reads, and gives a tuple."""


PIPELINE = (
    Pass("origins", name_origins, (CAPTURED,)),
    Pass("operations", split_operations, (CAPTURED, "origins")),
    Pass("flow", find_flow, (CAPTURED, "operations")),
    Pass("costs", estimate_cost, ("operations", "origins"), for_each=True),
    Pass("canonical", canonicalize, ("operations", "origins"), for_each=True),
    Pass("signatures", sign_apart, ("canonical",)),
    Pass("families", find_family, ("canonical",), for_each=True),
    Pass("request_dims", request_order, ("canonical",), for_each=True),
)
"""What `analyse` runs where modules run one by one."""

COMPILED_PIPELINE = tuple(replace(each, run=split_pieces) if each.run is split_operations else each for each in PIPELINE)
"""What it runs where an engine compiles all that lies between stateful operations."""


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


def run_passes(captured: CapturedGraph, passes: tuple[Pass, ...] = PIPELINE) -> Iterator[tuple[str, Any]]:
    """Run passes over a captured graph one after the other, and yield the name of each with its result.

    Raises:
        PassError: A pass goes by a name that is taken, or reads what no pass before it gives.
    """
    found: dict[str, Any] = {CAPTURED: captured}
    for each in passes:
        missing = [name for name in each.reads if name not in found]
        if missing or each.name in found:
            what = f"reads {', '.join(missing)}, which none before it gives" if missing else "goes by a name that is taken"
            raise PassError(f"pipeline: pass {each.name} {what}; known are {', '.join(found)}")
        first, *others = (found[name] for name in each.reads)
        found[each.name] = tuple(each.run(item, *others) for item in first) if each.for_each else each.run(first, *others)
        yield each.name, found[each.name]


def analyse(captured: CapturedGraph, passes: tuple[Pass, ...] = PIPELINE) -> Analysis:
    """Run all passes over a captured graph: `PIPELINE`, or `COMPILED_PIPELINE`."""
    found = dict(run_passes(captured, passes))
    of_each = ("operations", "costs", "canonical", "signatures", "families", "request_dims")
    operations = tuple(AnalysedOperation(*row) for row in zip(*(found[name] for name in of_each), strict=True))
    return Analysis(found["origins"], operations, found["flow"])
