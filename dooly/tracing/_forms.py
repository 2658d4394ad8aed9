"""Closed forms as text, such as `2048*num_tokens` or `batch*seq`: the names that they hold, and their values."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\[\w+\]|\.size\(\d+\)|\.\w+)*(?![\w.]*\()")
"""A dimension's name: an identifier, a path (`mask.lengths`), or the size of an argument without one (`args[0].size(0)`)."""


def form_names(text: str) -> tuple[str, ...]:
    """Return the names of the dimensions in a closed form, in the order first used."""
    return tuple(dict.fromkeys(_NAME.findall(text)))


def rename_form(text: str, names: Mapping[str, str]) -> str:
    """Return a closed form with other names for its dimensions.

    Raises:
        KeyError: `names` lacks a name of the form.
    """
    return _NAME.sub(lambda match: names[match[0]], text)


def evaluate_form(text: str, sizes: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a number, or an array where sizes are arrays
    """Return the value of a closed form at `sizes`: numbers, or arrays of one shape.

    Raises:
        KeyError: `sizes` lacks a name of the form.
        InvalidInputError: The form holds a function that has no value here.
    """
    values = [sizes[name] for name in form_names(text)]
    return _compiled(text)(*values)


@cache
def _compiled(text: str) -> Callable[..., Any]:
    """Return a closed form as a function of its dimensions, in the order of `form_names`."""
    import sympy
    from sympy.core.function import AppliedUndef

    names = form_names(text)
    symbols = sympy.symbols([f"d{i}" for i in range(len(names))], integer=True, positive=True)
    # A name such as `x.size(0)` or `S` means something else to sympy.
    plain = rename_form(text, {name: str(symbol) for name, symbol in zip(names, symbols, strict=True)})
    form = sympy.sympify(plain, locals={str(s): s for s in symbols})
    unknown = sorted({call.func.__name__ for call in form.atoms(AppliedUndef)} - _functions().keys())
    if unknown:
        raise InvalidInputError(f"closed form {text}: {unknown[0]} has no value here; compute that size without it")
    function: Callable[..., Any] = sympy.lambdify(symbols, form, [_functions(), "numpy"])
    return function


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    """Return the functions that torch writes into sizes and sympy does not know (`torch.utils._sympy.functions`), by name."""
    import numpy as np

    return {
        "BitwiseFn_bitwise_and": lambda a, b: np.int64(a) & np.int64(b),
        "BitwiseFn_bitwise_or": lambda a, b: np.int64(a) | np.int64(b),
        "BitwiseFn_bitwise_xor": lambda a, b: np.int64(a) ^ np.int64(b),
        "CeilToInt": np.ceil,
        "FloatPow": np.float_power,
        "FloatTrueDiv": np.true_divide,
        "FloorToInt": np.floor,
        "IntTrueDiv": np.true_divide,
        "ModularIndexing": lambda base, divisor, modulus: base // divisor % modulus,
        "OpaqueUnaryFn_exp": np.exp,
        "OpaqueUnaryFn_log": np.log,
        "OpaqueUnaryFn_log2": np.log2,
        "OpaqueUnaryFn_sqrt": np.sqrt,
        "PowByNatural": np.power,
        "PythonMod": np.mod,
        "RoundDecimal": np.round,
        "RoundToInt": np.rint,
        "ToFloat": np.float64,
        "TruncToFloat": np.trunc,
        "TruncToInt": np.trunc,
        "Where": np.where,
    }
