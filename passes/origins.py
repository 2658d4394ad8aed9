"""Name every symbol of a captured graph by where it comes from.

A symbol read off the module (a parameter's size, an integer attribute) is fixed by the configuration; one read off an argument of
the forward call is set by the request. What tracing proved equal is one dimension: a symbol that is equal to a configured one is
configured. Nothing is ever inferred from two sizes having the same value.

Method: union of symbols over PyTorch's shape guards, then elimination of parameter sizes in favour of module attributes
(`qkv_proj.weight.size(0)` becomes `q_size + 2*kv_size`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import sympy

from passes._errors import PassError
from passes.graph import shape_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from passes.graph import CapturedGraph, SymbolSource

_SIZE = re.compile(r"^(?P<tensor>.*)\.size\(\)\[(?P<axis>\d+)\]$")
_ITEM = re.compile(r"(?:\._modules|\._parameters|\._buffers)?\['([^']+)'\]")


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
    quotients: tuple[tuple[sympy.Expr, sympy.Expr], ...]
    """Divisions that tracing proved equal to a named symbol, such as `q_size // num_heads` to `head_size`."""

    def dim(self, expr: sympy.Expr) -> Dim:
        """Return a size of the graph as a named dimension with its origin."""
        named = self.rename(expr)
        free = named.free_symbols
        if free & self.requests:
            return Dim(named, Origin.REQUEST if free <= self.requests and not _is_scaled(named) else Origin.MIXED, None)
        return Dim(named, Origin.CONFIG, int(named.subs(self.values)))

    def parameter_dim(self, name: str, size: int) -> Dim:
        """Return a dimension of a parameter that the graph does not show, by the name `path.size(axis)`."""
        return Dim(sympy.Symbol(_shorten(name), integer=True, positive=True), Origin.CONFIG, size)

    def rename(self, expr: sympy.Expr) -> sympy.Expr:
        """Return an expression of the graph over the named symbols.

        Raises:
            PassError: The expression holds a symbol that has no source.
        """
        if unknown := expr.free_symbols - set(self.names):
            msg = f"origins: {expr} holds {sorted(map(str, unknown))}, which no source explains; report the model as a bug"
            raise PassError(msg)
        for pattern, replacement in self.quotients:
            expr = expr.xreplace({pattern: replacement})
        return sympy.expand(_exact_divisions(expr.xreplace(dict(self.names)), self.values))

    def concrete(self, expr: sympy.Expr) -> sympy.Expr:
        """Return an expression of the graph with every configured symbol by value: request symbols stay."""
        return sympy.sympify(self.rename(expr).subs(self.values))


def name_origins(captured: CapturedGraph) -> Origins:
    """Name the symbols of a captured graph.

    Raises:
        PassError: A dimension that `request_dims` names came out as a constant.
    """
    _check_request_dims(captured)
    sources = captured.sources
    parent = _unite(sources, captured.equalities)
    literal = _literals(captured.equalities, parent)
    is_config = {s: _root_argument(src.text) in (None, captured.module_argument) for s, src in sources.items()}
    groups: dict[sympy.Symbol, list[sympy.Symbol]] = {}
    for symbol in sources:
        groups.setdefault(parent[symbol], []).append(symbol)
    labels = _labels({r: m for r, m in groups.items() if r not in literal}, sources, is_config, captured)
    named: dict[sympy.Symbol, sympy.Expr] = {}
    values: dict[sympy.Symbol, int] = {}
    requests: set[sympy.Symbol] = set()
    for root, members in groups.items():
        if root in literal:
            named.update(dict.fromkeys(members, literal[root]))
            continue
        symbol = sympy.Symbol(labels[root], integer=True, positive=True)
        named.update(dict.fromkeys(members, symbol))
        if any(is_config[m] for m in members):
            values[symbol] = sources[root].value
        else:
            requests.add(symbol)
    sized = {named[s] for s, src in sources.items() if is_config[s] and isinstance(named[s], sympy.Symbol)}
    attributes = {named[s] for s, src in sources.items() if is_config[s] and not _SIZE.match(src.text)}
    solved, quotients = _eliminate(captured.equalities, named, values, sized - attributes)
    named = {s: sympy.expand(e.xreplace(solved).xreplace(solved)) for s, e in named.items()}
    return Origins(named, values, frozenset(requests), quotients)


def _check_request_dims(captured: CapturedGraph) -> None:
    for node in captured.graph.nodes:
        text = captured.placeholders.get(node.name)
        if text is None:
            continue
        argument = _argument(text)
        for axis, (name, size) in enumerate(zip(captured.request_dims.get(argument, ()), shape_of(node) or (), strict=False)):
            if name is not None and size.is_Integer:
                msg = (
                    f"origins: dimension {axis} of {argument} is named {name!r} but came out as the constant {size}; "
                    "trace with a size of at least 2 (torch takes 0 and 1 for constants), or give it no name"
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


def _labels(
    groups: Mapping[sympy.Symbol, list[sympy.Symbol]],
    sources: Mapping[sympy.Symbol, SymbolSource],
    is_config: Mapping[sympy.Symbol, bool],
    captured: CapturedGraph,
) -> dict[sympy.Symbol, str]:
    """Return a short, unique name for each class of symbols: attributes before parameter sizes, short paths first."""
    wanted: dict[sympy.Symbol, list[str]] = {}
    for root, members in groups.items():
        configured = [sources[m].text for m in members if is_config[m]]
        texts = configured or [sources[m].text for m in members]
        names = [_spell(t, captured) if configured else _request_name(t, captured) for t in texts]
        wanted[root] = sorted(names, key=lambda n: (".size(" in n, n.count("."), len(n), n))
    labels: dict[sympy.Symbol, str] = {}
    for root, names in wanted.items():
        of_module = any(is_config[m] for m in groups[root])
        short = _shorten(names[0]) if of_module else names[0]
        labels[root] = names[0] if of_module and short in labels.values() else short
    return labels


def _shorten(name: str) -> str:
    """Return an attribute without its module path; a parameter size keeps the module that owns it."""
    parts = name.split(".")
    keep = 3 if ".size(" in name else 1
    return ".".join(parts[-keep:])


def _spell(text: str, captured: CapturedGraph) -> str:
    """Return a source below the module as a dotted path: `layers.0.self_attn.q_size`, `norm.weight.size(0)`."""
    size = _SIZE.match(text)
    body = size["tensor"] if size else text
    body = body.removeprefix(f"L['{captured.module_argument}']")
    body = _ITEM.sub(r".\1", body).lstrip(".")
    return f"{body}.size({size['axis']})" if size else body


def _request_name(text: str, captured: CapturedGraph) -> str:
    """Return the name of a request dimension: as told by `request_dims`, else `argument.size(axis)`."""
    size = _SIZE.match(text)
    body = size["tensor"] if size else text
    spelled = _argument(body)
    axis = int(size["axis"]) if size else 0
    told = captured.request_dims.get(spelled, ())
    name = told[axis] if axis < len(told) else None
    return name or (f"{spelled}.size({axis})" if size else spelled)


def _argument(text: str) -> str:
    """Return the source of a forward argument as it is written in Python: `x`, `sampling.temperature`."""
    return _ITEM.sub(r".\1", text.replace("L[", "[", 1)).lstrip(".")


def _root_argument(text: str) -> str | None:
    """Return the forward argument that a source starts from, or None for globals and literals."""
    match = re.match(r"^L\['([^']+)'\]", text)
    return match[1] if match else None


def _eliminate(
    equalities: Iterable[tuple[sympy.Expr, sympy.Expr]],
    named: Mapping[sympy.Symbol, sympy.Expr],
    values: Mapping[sympy.Symbol, int],
    sizes: set[sympy.Expr],
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


def _exact_divisions(expr: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    """Replace floor divisions of configured sizes that leave no rest by plain fractions.

    A division rounded up, as `chunk` writes it, is `(size + n - 1) // n`: its rest is the constant, where `n` divides the size.
    """

    def exact(node: sympy.Expr) -> sympy.Expr:
        top, bottom = node.args
        if not (top.free_symbols | bottom.free_symbols) <= set(values):
            return node
        rest = top.subs(values) % bottom.subs(values)
        return (top - rest) / bottom if rest in (0, top.as_coeff_Add()[0]) else node

    return expr.replace(_is_division, exact)


def _has_integer_coefficients(expr: sympy.Expr) -> bool:
    return all(c.is_Integer for c in sympy.Add.make_args(expr) for c in [c.as_coeff_Mul()[0]])


def _is_scaled(expr: sympy.Expr) -> bool:
    """Tell whether a request expression carries a literal factor or offset, which makes it mixed."""
    return False if expr.is_Symbol else any(isinstance(a, sympy.Integer) and a != 0 for a in sympy.preorder_traversal(expr))
