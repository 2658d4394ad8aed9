from __future__ import annotations

import copy
import operator
import pickle
from typing import TYPE_CHECKING

import pytest
import sympy
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dooly.tracing._tracked import TrackedInt

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ("hidden_size", "num_heads", "vocab_size")
OPERATORS: tuple[Callable[[int, int], int], ...] = (
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
    lambda a, b: divmod(a, b)[0], lambda a, b: divmod(a, b)[1], lambda a, b: abs(a - b), lambda a, b: -a + b,
    lambda a, b: max(a, +b),
)  # fmt: skip


def _tracked(name: str, value: int) -> TrackedInt:
    return TrackedInt(value, sympy.Symbol(name, integer=True, positive=True))


_FLOORDIV, _DIFFERENCE = OPERATORS[3], OPERATORS[8]


@example(values=(1, 2, 1), literals=[0], steps=[(_FLOORDIV, 0, 1), (_DIFFERENCE, 1, 0), (_FLOORDIV, 4, 5)])
@given(
    values=st.tuples(*[st.integers(1, 10_000)] * len(NAMES)),
    literals=st.lists(st.integers(-64, 64), max_size=3),
    steps=st.lists(st.tuples(st.sampled_from(OPERATORS), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=6),
)
def test_tracked_arithmetic_is_plain_arithmetic(
    values: tuple[int, ...], literals: list[int], steps: list[tuple[Callable[[int, int], int], int, int]]
) -> None:
    """Any chain of operations gives the plain integers' result, and its expression has that value."""
    fields = {sympy.Symbol(n, integer=True, positive=True): v for n, v in zip(NAMES, values, strict=True)}
    plain = [*values, *literals]
    tracked = [*(TrackedInt(v, s) for s, v in fields.items()), *literals]
    for apply, left, right in steps:
        a, b = left % len(plain), right % len(plain)
        if plain[b] == 0:
            continue
        plain.append(apply(plain[a], plain[b]))
        tracked.append(apply(tracked[a], tracked[b]))
    assert tracked == plain
    for number in tracked:
        if isinstance(number, TrackedInt):
            assert number.expr.free_symbols
            assert number.expr.subs(fields) == int(number)


@pytest.mark.parametrize(
    ("number", "expr"),
    [
        (lambda q, n: q * n, "head_dim*num_heads"),
        (lambda q, n: 2 * q + n - 1, "2*head_dim + num_heads - 1"),
        (lambda q, n: (q * n) // n, "head_dim"),
        (lambda q, _: (q + 63) // 64 * 64, "64*(((head_dim + 63)//64))"),
        (lambda q, _: 1024 // q, "(1024//head_dim)"),
        (lambda q, _: sum([q, q, 1]), "2*head_dim + 1"),
        (lambda _, n: max(1, n // 3), "(num_heads//3)"),
    ],
)
def test_expressions(number: Callable[[int, int], TrackedInt], expr: str) -> None:
    """What model code computes from its configuration is written as it computes it."""
    assert str(number(_tracked("head_dim", 128), _tracked("num_heads", 8)).expr) == expr


def test_a_result_without_fields_is_plain() -> None:
    """What no longer depends on a field, and what integer arithmetic does not give, is a plain number."""
    size = _tracked("size", 8)
    assert [type(n) for n in (size - size, size * 0, size / 2, size**2, int(size), size + 0.5)] == [
        int,
        int,
        float,
        int,
        int,
        float,
    ]
    assert (size + 0.5, 0.5 + size) == (8.5, 8.5)


def test_division_by_zero_is_an_error() -> None:
    """A tracked integer divides by zero as little as a plain one."""
    with pytest.raises(ZeroDivisionError):
        _ = _tracked("size", 8) // 0


def test_it_is_the_integer_to_all_others() -> None:
    """Comparing, hashing, printing, indexing and making tensors are those of the plain integer."""
    size = _tracked("size", 3)
    assert size == 3
    assert {3: "three"}[size] == "three"
    assert (f"{size}", repr(size), "abcd"[size], [*range(size)]) == ("3", "3", "d", [0, 1, 2])
    assert torch.empty(size, 2).shape == (3, 2)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])  # noqa: S301 - our own
def test_copies_stay_tracked(duplicate: Callable[[TrackedInt], TrackedInt]) -> None:
    """A copied or pickled tracked integer keeps its expression."""
    twin = duplicate(_tracked("size", 3))
    assert (twin, str(twin.expr)) == (3, "size")
