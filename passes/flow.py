"""Find which operation's result feeds which, and which ones the graph hands on.

A value is followed through views, result pickers and whatever else belongs to no operation. Sizes carry no values: an operation
that only asks for the shape of a result does not read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.operators import is_tensor_code

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.graph import CapturedGraph
    from passes.operation import Operation


@dataclass(frozen=True, slots=True)
class Flow:
    """The data flow between the operations of one graph, by their positions."""

    feeds_from: tuple[tuple[int, ...], ...]
    """For each operation, those whose results it reads, in ascending order."""
    results: tuple[int, ...]
    """Those whose results the graph returns, in ascending order."""


def find_flow(captured: CapturedGraph, operations: tuple[Operation, ...]) -> Flow:
    """Return the data flow between the operations of a captured graph."""
    owner = {node: place for place, operation in enumerate(operations) for node in operation.nodes}
    behind: dict[Node, frozenset[int]] = {}
    feeders: list[set[int]] = [set() for _ in operations]
    results: set[int] = set()
    for node in captured.graph.nodes:
        sources = frozenset().union(*(behind.get(source, ()) for source in node.all_input_nodes))
        place = owner.get(node)
        if node.op == "output":
            results |= sources
        elif place is not None:
            behind[node] = frozenset({place})
            feeders[place] |= sources - {place}
        elif is_tensor_code(node):
            behind[node] = sources
    return Flow(tuple(tuple(sorted(found)) for found in feeders), tuple(sorted(results)))
