"""Split a captured graph as a compiling engine runs it: into stateful operations, and the compiled pieces between them.

A compiler fuses across modules, but not across an operator whose effects it does not see: all that the program has between one
stateful operation and the next runs as one. Collectives would cut pieces likewise, and are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes._errors import PassError
from passes.borders import with_inner_views, without_border_views
from passes.operation import make_operation
from passes.operations import owner_of, refuse_unreadable
from passes.operators import is_collective, is_tensor_code, operator_name, source_of, writes_back

if TYPE_CHECKING:
    from torch.fx import Node

    from passes.graph import CapturedGraph
    from passes.operation import Operation
    from passes.origins import Origins


def split_pieces(captured: CapturedGraph, origins: Origins) -> tuple[Operation, ...]:
    """Return stateful operations and the compiled pieces between them, in the order they run.

    A piece goes by the path of the stateful module that it runs up to, and by no path behind the last one.

    Raises:
        PassError: Nothing in the graph is stateful, or some operator or size cannot be read, as `split_operations` has it; or a
            collective exchanges tensors between ranks.
    """
    refuse_unreadable(captured, origins)
    pieces: list[list[Node]] = [[]]
    stateful: dict[tuple[str, str, str], list[Node]] = {}
    for node in captured.graph.nodes:
        if not is_tensor_code(node) or writes_back(node):
            continue
        if is_collective(node):
            raise PassError(f"pieces: {operator_name(node)} exchanges tensors between ranks; trace compiled pieces of one rank")
        owner = owner_of(source_of(node), captured)
        if owner[1] not in captured.stateful:
            pieces[-1].append(node)
            continue
        if owner not in stateful:
            pieces.append([])
        stateful.setdefault(owner, []).append(node)
    if not stateful:
        raise PassError("pieces: the graph has no stateful operation, so nothing bounds a piece; split it by modules")
    groups: list[tuple[tuple[str, str], list[Node], bool]] = []
    for (_, path, name), own, piece in zip(stateful, stateful.values(), pieces, strict=False):
        groups += [((path, ""), piece, True), ((path, name), own, False)]
    groups.append((("", ""), pieces[-1], True))
    return tuple(
        make_operation(call, nodes, captured, origins, is_piece=is_piece)
        for call, group, is_piece in groups
        if (nodes := without_border_views(with_inner_views(group, captured), captured))
    )
