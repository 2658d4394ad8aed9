"""Closed forms as text, such as `2048*num_tokens` or `batch*seq`: the names that they hold, and their values."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

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
    """
    values = [sizes[name] for name in form_names(text)]
    return _compiled(text)(*values)


@cache
def _compiled(text: str) -> Callable[..., Any]:
    """Return a closed form as a function of its dimensions, in the order of `form_names`."""
    import sympy

    names = form_names(text)
    symbols = sympy.symbols([f"d{i}" for i in range(len(names))], integer=True, positive=True)
    # A name such as `x.size(0)` or `S` means something else to sympy.
    plain = rename_form(text, {name: str(symbol) for name, symbol in zip(names, symbols, strict=True)})
    function: Callable[..., Any] = sympy.lambdify(symbols, sympy.sympify(plain, locals={str(s): s for s in symbols}), "numpy")
    return function
