"""Choose how each class of united symbols is written: over configuration fields, as a module attribute, or as a parameter's size.

Contract: a class is written over a field of the configuration only where the capture says that one of its symbols comes from it.
Two classes never share a name, and no class shares one with a field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sympy

from passes.graph import SIZE_SOURCE, spell_items, spell_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from passes.graph import CapturedGraph


@dataclass(frozen=True, slots=True)
class Labels:
    """How each class of symbols is written."""

    exprs: dict[sympy.Symbol, sympy.Expr]
    """Expression of each class, by its representative."""
    values: Mapping[sympy.Symbol, int]
    """Value of each symbol that the configuration or the module sets."""
    requests: frozenset[sympy.Symbol]
    """The symbols that the request sets."""
    configured: Mapping[str, sympy.Expr]
    """What the capture says of the configuration, by path below the module, over symbols that nothing else is written with."""
    sizes: frozenset[sympy.Symbol]
    """The symbols that are known as sizes of parameters only, and so give way to any other expression."""


def label_classes(classes: Mapping[sympy.Symbol, list[sympy.Symbol]], captured: CapturedGraph) -> Labels:
    """Return an expression for each class of symbols that tracing proved equal."""
    of_module = {root: _of_module(members, captured) for root, members in classes.items()}
    request_names = {root: _request_label(classes[root], captured) for root, members in of_module.items() if not members}
    fields = {s: _symbol(f"config.{s}" if str(s) in request_names.values() else str(s)) for s in captured.config_values}
    configured = {path: expr.xreplace(fields) for path, expr in captured.configured.items()}
    paths = {root: _paths(members, captured) for root, members in of_module.items() if members}
    exprs = {root: _simplest(found) for root, ps in paths.items() if (found := {configured[p] for p in ps if p in configured})}
    names = _module_labels(
        {root: ps for root, ps in paths.items() if root not in exprs}, {*request_names.values(), *map(str, fields.values())}
    )
    symbols = {root: _symbol(name) for root, name in (request_names | names).items()}
    return Labels(
        exprs=exprs | symbols,
        values={fields[s]: value for s, value in captured.config_values.items()}
        | {symbols[root]: captured.sources[root].value for root in names},
        requests=frozenset(symbols[root] for root in request_names),
        configured=configured,
        sizes=frozenset(symbols[root] for root in names if all(".size(" in path for path in paths[root])),
    )


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, integer=True, positive=True)


def _of_module(members: Iterable[sympy.Symbol], captured: CapturedGraph) -> list[sympy.Symbol]:
    """Return the symbols that were read off the module or a global, not off an argument of the forward call."""
    return [m for m in members if _root_argument(captured.sources[m].text) in (None, captured.module_argument)]


def _paths(members: Iterable[sympy.Symbol], captured: CapturedGraph) -> list[str]:
    return [spell_source(captured.sources[m].text, captured.module_argument) for m in members]


def _simplest(exprs: Iterable[sympy.Expr]) -> sympy.Expr:
    """Return the expression of the fewest fields, then the shortest, then the first in the alphabet."""
    return min(exprs, key=lambda e: (len(e.free_symbols), len(str(e)), str(e)))


def _module_labels(paths: Mapping[sympy.Symbol, list[str]], taken: set[str]) -> dict[sympy.Symbol, str]:
    """Return a short name of its own for each class: attributes before parameter sizes, short paths first.

    Args:
        paths: The paths below the module of each class's symbols.
        taken: Names that stand for something else.
    """
    labels: dict[sympy.Symbol, str] = {}
    for root, spelled in paths.items():
        name = min(spelled, key=_simplicity)
        choices = (shorten(name), name, f"self.{name}")
        labels[root] = next(c for c in choices if c not in taken and c not in labels.values())
    return labels


def _simplicity(name: str) -> tuple[bool, int, int, str]:
    return ".size(" in name, name.count("."), len(name), name


def _request_label(members: Iterable[sympy.Symbol], captured: CapturedGraph) -> str:
    return min((_request_name(captured.sources[m].text, captured) for m in members), key=_simplicity)


def shorten(name: str) -> str:
    """Return an attribute without its module path; a parameter size keeps the module that owns it."""
    parts = name.split(".")
    keep = 3 if ".size(" in name else 1
    return ".".join(parts[-keep:])


def _request_name(text: str, captured: CapturedGraph) -> str:
    """Return the name of a request dimension: as told by `request_dims`, else `argument.size(axis)`."""
    size = SIZE_SOURCE.match(text)
    body = size["tensor"] if size else text
    spelled = spell_argument(body)
    axis = int(size["axis"]) if size else 0
    told = captured.request_dims.get(spelled, ())
    name = told[axis] if axis < len(told) else None
    return name or (f"{spelled}.size({axis})" if size else spelled)


def spell_argument(text: str) -> str:
    """Return the source of a forward argument as it is written in Python: `x`, `sampling.temperature`."""
    return spell_items(text.replace("L[", "[", 1))


def _root_argument(text: str) -> str | None:
    """Return the forward argument that a source starts from, or None for globals and literals."""
    match = re.match(r"^L\['([^']+)'\]", text)
    return match[1] if match else None
