"""An integer that knows which configuration fields it was computed from.

Contract: it is the plain integer to all who compare, hash, print or index with it, and stays tracked through integer arithmetic
only. Whatever turns it into a plain integer (`int()`, `range`, a C++ argument) drops the expression; nothing ever invents one.
"""

from __future__ import annotations

import operator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

if TYPE_CHECKING:
    from collections.abc import Callable

    import sympy


class TrackedInt(int):
    """An integer with its expression over configuration fields."""

    expr: sympy.Expr

    def __new__(cls, value: int, expr: sympy.Expr) -> Self:
        """Return the integer `value`, known to be `expr`."""
        self = super().__new__(cls, value)
        self.expr = expr
        return self

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[Any, ...]:
        return TrackedInt, (int(self), self.expr)

    def __copy__(self) -> TrackedInt:
        return self

    def __deepcopy__(self, _memo: object) -> TrackedInt:
        return self

    def __pos__(self) -> TrackedInt:
        return self

    def __neg__(self) -> int:
        return 0 - self

    def __abs__(self) -> int:
        return self if self >= 0 else -self

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __rdivmod__(self, other: int) -> tuple[int, int]:
        return other // self, other % self


def _track(name: str) -> None:
    """Give `TrackedInt` a binary operator and its reflected form."""
    compute: Callable[[int, int], Any] = getattr(int, f"__{name}__")

    def forward(self: TrackedInt, other: object) -> Any:  # noqa: ANN401 - an int, or NotImplemented
        return _result(name, compute(self, other), self, other)  # type: ignore[arg-type]

    def reflected(self: TrackedInt, other: object) -> Any:  # noqa: ANN401 - as above
        return _result(name, getattr(int, f"__r{name}__")(self, other), other, self)

    setattr(TrackedInt, f"__{name}__", forward)
    setattr(TrackedInt, f"__r{name}__", reflected)


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    _track(_name)


def _result(name: str, value: Any, left: object, right: object) -> Any:  # noqa: ANN401 - an int, or NotImplemented
    """Return the value of an operation with its expression; a plain integer where no configuration field is left."""
    if value is NotImplemented:
        return value
    expr = _combine(name, _expr(left), _expr(right))
    return TrackedInt(value, expr) if expr.free_symbols else value


def _expr(value: Any) -> sympy.Expr:  # noqa: ANN401 - an int, tracked or not
    import sympy

    return value.expr if isinstance(value, TrackedInt) else sympy.Integer(int(value))


@lru_cache(maxsize=4096)
def _combine(name: str, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    """Return the expression of an operation. Cached: a model's layers all compute the same."""
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    functions: dict[str, Callable[[Any, Any], Any]] = {"floordiv": FloorDiv, "mod": sympy.Mod}
    if name == "floordiv" and not right.is_positive:  # torch makes one division of two, which holds for positive divisors only
        return sympy.floor(left / right)
    return functions.get(name, getattr(operator, name))(left, right)
