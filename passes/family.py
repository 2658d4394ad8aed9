"""Find the family of an operation: its canonical graph with every number masked, and the numbers apart.

All linear layers of one element type are one family, whatever their widths; all norms another. What is masked are the sizes of
tensors, the numbers among arguments and attributes, and constants in sizes; what remains are operators, element types, texts,
truth values and structure. The numbers come in an order that the masked graph gives, so that the same place in two members of a
family has the same place among their numbers.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.signature import digest, refine

if TYPE_CHECKING:
    import networkx as nx

FAMILY_SCHEME = 1
"""Version of the masking and of the order of numbers. Families of different schemes never compare equal."""
_MASK = "#"
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?")
_LABEL = re.compile(r"^(?P<name>[^{\[]*?)(?P<arguments>\s*\{.*\})?(?P<tensor>\s*\w+\[[^\]]*\])?$")


@dataclass(frozen=True, slots=True)
class Family:
    """What an operation has in common with others, and what tells it from them."""

    signature: str
    """Digest of the masked graph: 32 hexadecimal digits."""
    numbers: tuple[float, ...]
    """The numbers that were masked, in canonical order."""


def find_family(graph: nx.DiGraph[int]) -> Family:
    """Return the family of an operation by its canonical graph."""
    masked = graph.copy()
    numbers: dict[int, tuple[float, ...]] = {}
    for node, label in graph.nodes(data="label"):
        masked.nodes[node]["label"], numbers[node] = mask(label)
    colours = refine(masked)
    # Nodes of one colour play one part: their numbers come by size.
    ordered = sorted(graph.nodes, key=lambda node: (colours[node], numbers[node]))
    signature = digest(f"dooly-family-{FAMILY_SCHEME}", colours.values())
    return Family(signature, tuple(number for node in ordered for number in numbers[node]))


def mask(label: str) -> tuple[str, tuple[float, ...]]:
    """Return a node's label with its numbers masked, and the numbers in the order of the label."""
    if (number := _number(label)) is not None:
        return _MASK, (number,)
    parts = _LABEL.match(label)
    assert parts is not None, label
    numbers: list[float] = []

    def hide(value: object) -> object:
        if isinstance(value, dict):
            return {key: hide(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [hide(inner) for inner in value]
        if (found := _number(value)) is None:
            return value
        numbers.append(found)
        return _MASK

    text = parts["name"]
    if parts["arguments"]:
        text += f" {json.dumps(hide(json.loads(parts['arguments'])))}"
    if parts["tensor"]:
        dtype, _, sizes = parts["tensor"].strip().removesuffix("]").partition("[")
        text += f" {dtype}[{', '.join(str(hide(size)) for size in sizes.split(', '))}]"
    return text, tuple(numbers)


def _number(value: object) -> float | None:
    """Return the value of a finite number, or of a text that is one; None of anything else, truth values included."""
    if isinstance(value, bool) or not _NUMBER.fullmatch(str(value)):
        return None
    return float(value)  # type: ignore[arg-type] # the text of one
