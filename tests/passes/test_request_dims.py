from __future__ import annotations

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.request_dims import find_request_dims

NAMES = ("b", "s", "m", "n")


def _size(text: str, names: tuple[str, ...] = NAMES) -> sympy.Expr:
    """Return a size, written over b, s, m and n, with its symbols called `names`."""
    symbols = {old: sympy.Symbol(new, integer=True, positive=True) for old, new in zip(NAMES, names, strict=True)}
    return sympy.sympify(text, locals=symbols)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ("b*s", "b*s"),
        ("b*s; 8*b*s; 12", "b*s"),
        ("b*s; b", "b; s"),
        ("b*s; m*n; m", "b*s; m; n"),
        ("m + n", "m + n"),
        ("m + n; n", "m; n"),
        ("2*n", "2*n"),
        ("2*n; n", "n"),
        ("n**2; m", "m; n**2"),
        ("b*s**2; b**2*s**4 + m", "b*s**2; m"),
        ("floor(b*s/2); b*s", "b*s"),
        ("floor(b*s/2); b", "b; s"),
        ("m*(n + 1); m", "m; n"),
        ("12", ""),
    ],
)
def test_dims_are_what_all_sizes_are_made_of(sizes: str, expected: str) -> None:
    """Symbols that only occur as one expression, or as one product, are one dimension; others stay apart."""
    found = [_size(text) for text in sizes.split("; ")]
    dims = find_request_dims(found)
    names = {symbol.name for size in found for symbol in size.xreplace(dims).free_symbols}
    assert "; ".join(sorted(names)) == expected


TERMS = st.sampled_from(
    ["b", "s", "b*s", "m", "n", "n**2", "m*n", "b*s*n", "2*b*s", "b*s + m", "floor(b*s/3)", "floor(n/2)*m", "7"]
)


@settings(max_examples=40, derandomize=True)
@given(texts=st.lists(TERMS, min_size=1, max_size=5), values=st.lists(st.integers(2, 9), min_size=4, max_size=4))
def test_every_size_is_a_function_of_the_dims(texts: list[str], values: list[int]) -> None:
    """Each size, written over the dimensions, has the value that it has over the symbols; there are never more dimensions."""
    sizes = [_size(text) for text in texts]
    at = {_size(name): value for name, value in zip(NAMES, values, strict=True)}
    dims = find_request_dims(sizes)
    over = [size.xreplace(dims) for size in sizes]
    free = set().union(*(size.free_symbols for size in over))
    assert [size.subs({dim: _size(str(dim)).subs(at) for dim in free}) for size in over] == [size.subs(at) for size in sizes]
    assert len(free) <= len(set().union(*(size.free_symbols for size in sizes)))


@settings(max_examples=40, derandomize=True)
@given(texts=st.lists(TERMS, min_size=1, max_size=5), names=st.permutations(["z", "y", "x", "w"]), order=st.randoms())
def test_names_and_order_do_not_change_the_dims(texts: list[str], names: list[str], order: object) -> None:
    """Other names and another order of the sizes give the same dimensions, renamed."""
    renaming = dict(zip(map(_size, NAMES), map(sympy.Symbol, names), strict=True))
    shuffled = list(texts)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    dims = {d for t in find_request_dims([_size(t) for t in texts]).values() for d in t.free_symbols}
    renamed = find_request_dims([_size(t, tuple(names)) for t in shuffled])
    assert {_plain(_size(str(d)).xreplace(renaming)) for d in dims} == {
        _plain(sympy.sympify(str(d), locals={n: sympy.Symbol(n) for n in names}))
        for t in renamed.values()
        for d in t.free_symbols
    }


def _plain(expr: sympy.Expr) -> sympy.Expr:
    return expr.xreplace({s: sympy.Symbol(s.name) for s in expr.free_symbols})
