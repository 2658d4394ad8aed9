"""Find the request dimensions of an operation: the largest expressions of the batch that all its sizes are functions of.

A linear layer over `(batch, seq, hidden)` multiplies a matrix of `batch*seq` rows: the operation never sees `batch` or `seq`
alone, so `batch*seq` is its request dimension, and it is the same operation as a linear layer over `(num_tokens, hidden)`.

Method: sizes that share no symbol are independent. Where all sizes that share symbols are one expression, that expression is the
dimension. Elsewhere, symbols that occur in the same powers in each product, up to a common exponent, are one dimension: their
product. A symbol that also occurs without the others stays apart.
"""

from __future__ import annotations

from math import gcd, prod
from typing import TYPE_CHECKING

import networkx as nx
import sympy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def find_request_dims(sizes: Iterable[sympy.Expr]) -> dict[sympy.Expr, sympy.Expr]:
    """Return the replacements that write each size over the request dimensions; `size.xreplace` takes them.

    A request dimension is a symbol with the text of its expression for a name.

    Args:
        sizes: All sizes of an operation, configured symbols by value.
    """
    found = sorted({size for size in sizes if size.free_symbols}, key=str)
    shared = nx.Graph()
    for size in found:
        nx.add_path(shared, sorted(size.free_symbols, key=str))
    replacements: dict[sympy.Expr, sympy.Expr] = {}
    for symbols in nx.connected_components(shared):
        related = [size for size in found if size.free_symbols <= symbols]
        replacements |= {related[0]: _dim(related[0])} if len(related) == 1 else _products(symbols, related)
    return replacements


def _dim(expr: sympy.Expr) -> sympy.Symbol:
    return sympy.Symbol(str(expr), integer=True, positive=True)


def _products(symbols: Iterable[sympy.Symbol], sizes: list[sympy.Expr]) -> dict[sympy.Expr, sympy.Expr]:
    """Return replacements that write each group of symbols, which only occur as one product, as that product."""
    monomials = [monomial for size in sizes for monomial in _monomials(size)]
    groups: dict[tuple[int, ...], dict[sympy.Symbol, int]] = {}
    for symbol in sorted(symbols, key=str):
        exponents = [monomial.get(symbol, 0) for monomial in monomials]
        common = gcd(*exponents)
        groups.setdefault(tuple(e // common for e in exponents), {})[symbol] = common
    replacements: dict[sympy.Expr, sympy.Expr] = {}
    for group in groups.values():
        (first, exponent), *others = group.items()
        dim = _dim(prod(symbol**power for symbol, power in group.items()))
        replacements |= {first: dim ** sympy.Rational(1, exponent)} | {symbol: sympy.Integer(1) for symbol, _ in others}
    return replacements


def _monomials(expr: sympy.Expr) -> Iterator[dict[sympy.Symbol, int]]:
    """Yield the exponents of the symbols in each product of an expression, those inside sums and functions too."""
    is_product = expr.is_Mul or expr.is_Pow or expr.is_Symbol
    powers = expr.as_powers_dict() if is_product else {}
    monomial = {base: int(power) for base, power in powers.items() if base.is_Symbol and power.is_Integer}
    if monomial:
        yield monomial
    for part in [base for base in powers if base not in monomial] if is_product else expr.args:
        yield from _monomials(part)
