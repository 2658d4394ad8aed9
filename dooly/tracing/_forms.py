"""Closed forms as text, such as `2048*num_tokens` or `batch*seq`: the names that they hold, and their values."""

from __future__ import annotations

import ast
import re
from functools import cache, reduce
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
    """Return a closed form as a function of its dimensions, in the order of `form_names`.

    Plain arithmetic is compiled as it stands, since loading sympy takes a fifth of a second; sympy reads the rest.
    """
    names = form_names(text)
    places = {name: f"d{i}" for i, name in enumerate(names)}
    # A name such as `x.size(0)` or `S` means something else to Python or to sympy.
    plain = rename_form(text, places)
    tree = ast.parse(plain.strip(), mode="eval")
    if all(_is_arithmetic(node) for node in ast.walk(tree)):
        arguments = [ast.arg(place) for place in places.values()]
        tree.body = ast.Lambda(ast.arguments([], arguments, None, [], [], None, []), tree.body)
        code = compile(ast.fix_missing_locations(tree), "<closed form>", "eval")
        function: Callable[..., Any] = eval(code, {"__builtins__": {}, **_extremes()})  # noqa: S307 - checked arithmetic
        return function
    return _by_sympy(text, plain, tuple(places.values()))


_ARITHMETIC = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.USub, ast.Add, ast.Sub, ast.Mult, ast.Name, ast.Load)


def _is_arithmetic(node: ast.AST) -> bool:
    """Tell whether a part of a form is a sum, product, minimum or maximum, which Python and sympy understand alike."""
    if isinstance(node, ast.Constant):
        return type(node.value) in {int, float}
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in {"Min", "Max"} and not node.keywords
    return isinstance(node, _ARITHMETIC)


@cache
def _extremes() -> dict[str, Callable[..., Any]]:
    import numpy as np

    return {"Min": lambda *values: reduce(np.minimum, values), "Max": lambda *values: reduce(np.maximum, values)}


def _by_sympy(text: str, plain: str, names: tuple[str, ...]) -> Callable[..., Any]:
    import sympy
    from sympy.core.function import AppliedUndef

    symbols = [sympy.Symbol(name, integer=True, positive=True) for name in names]
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
