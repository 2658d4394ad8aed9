"""Name every symbol of a captured graph by where it comes from.

A symbol read off the module (a parameter's size, an integer attribute) is fixed by the configuration; one read off an argument of
the forward call is set by the request. What tracing proved equal is one dimension: a symbol that is equal to a configured one is
configured. It is written over fields of the model's configuration where the graph comes with their names, else as an attribute of
the module, else as a parameter's size. Nothing is ever inferred from two sizes having the same value.

Method: union of symbols over PyTorch's shape guards, then elimination of parameter sizes in favour of module attributes
(`qkv_proj.weight.size(0)` becomes `q_size + 2*kv_size`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import sympy

from passes._errors import PassError
from passes.graph import shape_of
from passes.labels import label_classes, shorten, spell_argument

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from passes.graph import CapturedGraph, SymbolSource


class Origin(StrEnum):
    """Who sets a dimension."""

    CONFIG = "config"
    """The model configuration, the parallel layout or a literal in the model."""
    REQUEST = "request"
    """The batch."""
    MIXED = "mixed"
    """An expression of both."""


@dataclass(frozen=True, slots=True)
class Dim:
    """One dimension: its expression over named symbols, who sets it, and its value where configured."""

    expr: sympy.Expr
    """Expression over named origins, such as `q_size + 2*kv_size` or `num_tokens`."""
    origin: Origin
    """Who sets the dimension."""
    value: int | None
    """The size, where the origin is `config`; None where the request takes part."""


@dataclass(frozen=True, slots=True)
class Origins:
    """The answer of the pass: each symbol as an expression over named symbols."""

    names: Mapping[sympy.Symbol, sympy.Expr]
    """Expression over named symbols, for each symbol of the graph."""
    values: Mapping[sympy.Symbol, int]
    """Value of each named configuration symbol."""
    requests: frozenset[sympy.Symbol]
    """The named symbols that the request sets."""
    configured: Mapping[str, sympy.Expr]
    """Expression over fields of the configuration, by path below the module."""
    quotients: tuple[tuple[sympy.Expr, sympy.Expr], ...]
    """Divisions that tracing proved equal to a named symbol, such as `q_size // num_heads` to `head_size`."""
    _renamed: dict[sympy.Expr, sympy.Expr] = field(default_factory=dict, repr=False, compare=False)
    """What `rename` gave so far: a graph has few sizes, and each many times."""

    def dim(self, expr: sympy.Expr) -> Dim:
        """Return a size of the graph as a named dimension with its origin."""
        named = self.rename(expr)
        free = named.free_symbols
        if free & self.requests:
            return Dim(named, Origin.REQUEST if free <= self.requests and not _is_scaled(named) else Origin.MIXED, None)
        return Dim(named, Origin.CONFIG, int(self.by_value(named)))

    def parameter_dim(self, name: str, size: int) -> Dim:
        """Return a dimension of a parameter that the graph does not show, by the name `path.size(axis)`."""
        expr = self.configured.get(name)
        return Dim(sympy.Symbol(shorten(name), integer=True, positive=True) if expr is None else expr, Origin.CONFIG, size)

    def rename(self, expr: sympy.Expr) -> sympy.Expr:
        """Return an expression of the graph over the named symbols.

        Raises:
            PassError: The expression holds a symbol that has no source.
        """
        if expr not in self._renamed:
            if unknown := expr.free_symbols - set(self.names):
                msg = f"origins: {expr} holds {sorted(map(str, unknown))}, which no source explains; report the model as a bug"
                raise PassError(msg)
            named = expr
            for pattern, replacement in self.quotients:
                named = named.xreplace({pattern: replacement})
            self._renamed[expr] = _simplify(named.xreplace(dict(self.names)), self.values)
        return self._renamed[expr]

    def by_value(self, named: sympy.Expr) -> sympy.Expr:
        """Return an expression over named symbols with every configured one by value: request symbols stay."""
        return _by_value(named, self.values)

    def concrete(self, expr: sympy.Expr) -> sympy.Expr:
        """Return an expression of the graph with every configured symbol by value: request symbols stay."""
        return self.by_value(self.rename(expr))


def name_origins(captured: CapturedGraph) -> Origins:
    """Name the symbols of a captured graph.

    Raises:
        PassError: A dimension that `request_dims` names came out as a constant.
    """
    _check_request_dims(captured)
    sources = captured.sources
    parent = _unite(sources, captured.equalities)
    literal = _literals(captured.equalities, parent)
    classes: dict[sympy.Symbol, list[sympy.Symbol]] = {}
    for symbol in sources:
        classes.setdefault(parent[symbol], []).append(symbol)
    labels = label_classes({root: members for root, members in classes.items() if root not in literal}, captured)
    exprs = {root: _simplify(expr, labels.values) for root, expr in (labels.exprs | literal).items()}
    named = {symbol: exprs[parent[symbol]] for symbol in sources}
    configured = {path: _simplify(expr, labels.values) for path, expr in labels.configured.items()}
    solved, quotients = _eliminate(captured.equalities, named, labels.values, labels.sizes)
    named = {s: sympy.expand(e.xreplace(solved).xreplace(solved)) for s, e in named.items()}
    return Origins(named, labels.values, labels.requests, configured, quotients)


def _check_request_dims(captured: CapturedGraph) -> None:
    for node in captured.graph.nodes:
        text = captured.placeholders.get(node.name)
        if text is None:
            continue
        argument = spell_argument(text)
        for axis, (name, size) in enumerate(zip(captured.request_dims.get(argument, ()), shape_of(node) or (), strict=False)):
            if name is not None and size.is_Integer:
                msg = (
                    f"origins: dimension {axis} of {argument}, named {name!r}, had the size {size} in this call, which to "
                    "PyTorch is a case of its own (broadcasting), and no request dimension; call the module with a size of at "
                    "least 2 there, or give it no name"
                )
                raise PassError(msg)


def _unite(
    sources: Mapping[sympy.Symbol, SymbolSource], equalities: Iterable[tuple[sympy.Expr, sympy.Expr]]
) -> dict[sympy.Symbol, sympy.Symbol]:
    """Return the representative of each symbol under the symbol-to-symbol equalities."""
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(sources)
    for left, right in equalities:
        if left in sources and right in sources:
            graph.add_edge(left, right)
    order = {s: i for i, s in enumerate(sources)}
    parent = {}
    for component in nx.connected_components(graph):
        root = min((s for s in component if s in order), key=order.__getitem__)
        parent.update(dict.fromkeys(component, root))
    return parent


def _literals(
    equalities: Iterable[tuple[sympy.Expr, sympy.Expr]], parent: Mapping[sympy.Symbol, sympy.Symbol]
) -> dict[sympy.Symbol, sympy.Integer]:
    """Return the classes that tracing pinned to a literal integer."""
    pinned = {}
    for pair in equalities:
        for symbol, other in (pair, pair[::-1]):
            if symbol.is_Symbol and isinstance(other, sympy.Integer) and symbol in parent:
                pinned[parent[symbol]] = other
    return pinned


def _eliminate(
    equalities: Iterable[tuple[sympy.Expr, sympy.Expr]],
    named: Mapping[sympy.Symbol, sympy.Expr],
    values: Mapping[sympy.Symbol, int],
    sizes: frozenset[sympy.Symbol],
) -> tuple[dict[sympy.Expr, sympy.Expr], tuple[tuple[sympy.Expr, sympy.Expr], ...]]:
    """Solve the equalities for parameter sizes; keep divisions that equal a named symbol as rewrites."""
    solved: dict[sympy.Expr, sympy.Expr] = {}
    quotients: list[tuple[sympy.Expr, sympy.Expr]] = []
    for left, right in equalities:
        if left.is_Symbol and right.is_Symbol:
            continue
        a, b = left.xreplace(dict(named)), right.xreplace(dict(named))
        if not (a.free_symbols | b.free_symbols) <= set(values):
            continue
        for quotient, symbol in ((left, b), (right, a)):
            if symbol.is_Symbol and _is_division(quotient):
                quotients.append((quotient, symbol))
        difference = sympy.expand(_exact_divisions(a - b, values).xreplace(solved))
        for symbol in sorted(difference.free_symbols & sizes - set(solved), key=str, reverse=True):
            coefficient = difference.coeff(symbol)
            rest = sympy.expand(difference - coefficient * symbol)
            answer = sympy.expand(-rest / coefficient) if coefficient.is_Number else None
            if answer is not None and symbol not in rest.free_symbols and _has_integer_coefficients(answer):
                solved = {k: sympy.expand(v.xreplace({symbol: answer})) for k, v in solved.items()} | {symbol: answer}
                break
    return solved, tuple(quotients)


def _is_division(expr: sympy.Expr) -> bool:
    """Tell torch's floor division (its own sympy function) by its name."""
    return type(expr).__name__ in {"FloorDiv", "CleanDiv"}


def _simplify(expr: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    return sympy.expand(_exact_divisions(expr, values))


def _exact_divisions(expr: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    """Replace floor divisions of configured sizes that leave no rest by plain fractions.

    A division rounded up, as `chunk` writes it, is `(size + n - 1) // n`: its rest is the constant, where `n` divides the size.
    """
    parts = tuple(_exact_divisions(part, values) for part in expr.args)
    node: sympy.Expr = expr if parts == expr.args else expr.func(*parts)
    if not _is_division(node) or not node.free_symbols <= set(values):
        return node
    top, bottom = node.args
    rest = _by_value(top, values) % _by_value(bottom, values)
    return (top - rest) / bottom if rest in (0, top.as_coeff_Add()[0]) else node


def _by_value(expr: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    """Return an expression with symbols by value. `subs` would look for each of them anew, and in order."""
    return expr.xreplace({symbol: sympy.Integer(values[symbol]) for symbol in expr.free_symbols & values.keys()})


def _has_integer_coefficients(expr: sympy.Expr) -> bool:
    return all(c.is_Integer for c in sympy.Add.make_args(expr) for c in [c.as_coeff_Mul()[0]])


def _is_scaled(expr: sympy.Expr) -> bool:
    """Tell whether a request expression carries a literal factor or offset, which makes it mixed."""
    return False if expr.is_Symbol else any(isinstance(a, sympy.Integer) and a != 0 for a in sympy.preorder_traversal(expr))
