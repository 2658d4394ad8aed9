"""Which views belong to an operation: those between its nodes, and those of parameters.

Views at an operation's border cost nothing and belong to no operation: functionalisation regenerates them wherever a value is
used, so they say nothing about the module that they appear in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.operators import ALLOCATES, is_view, operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.fx import Node

    from passes.graph import CapturedGraph


def views_behind(node: Node) -> Iterator[Node]:
    """Yield the views that a value passed through last, latest first."""
    while node.op == "call_function" and is_view(node):
        yield node
        node = node.args[0]  # type: ignore[assignment]


def behind_views(node: Node) -> Node:
    """Return what a value was before it passed through views."""
    *_, last = (None, *views_behind(node))
    return node if last is None else last.args[0]  # type: ignore[return-value]


def with_inner_views(group: list[Node], captured: CapturedGraph) -> list[Node]:
    """Return a group with the views that lie between two of its nodes, in graph order: they say which result goes where.

    Views of parameters come along as well: a transposed weight is part of the operation.
    """
    members = set(group)
    for node in group:
        for source in node.all_input_nodes:
            passed = list(views_behind(source))
            if passed and (passed[-1].args[0] in members or not is_activation(passed[-1].args[0], captured)):  # type: ignore[arg-type]
                members.update(passed)
    return sorted(members)


def without_border_views(group: list[Node], captured: CapturedGraph) -> tuple[Node, ...]:
    """Return a group's nodes less the views that only feed the group from outside or only hand its results on."""
    members = set(group)
    for node in group:
        if is_view(node) and node.args[0] not in members and is_activation(node.args[0], captured):  # type: ignore[arg-type]
            members.discard(node)
    for node in reversed(group):
        if node in members and is_view(node) and not any(user in members for user in node.users):
            members.discard(node)
    kept = [n for n in group if n in members]
    return tuple(kept) if any(not is_view(n) and operator_name(n) not in ALLOCATES for n in kept) else ()


def is_activation(node: Node, captured: CapturedGraph) -> bool:
    """Tell what a forward call computes or is given from the module's own parameters and buffers."""
    text = captured.placeholders.get(node.name)
    return text is None or not text.startswith(f"L['{captured.module_argument}']")
