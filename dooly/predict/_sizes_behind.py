"""Sizes of a model's request dimensions behind those that an operation was measured at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import InvalidInputError
from dooly.tracing import evaluate_form, form_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_LARGEST = 2.0**62
_TOLERANCE = 1e-6
_NUM_HALVINGS = 100
"""Each halves the distance on a scale of ratios: enough to tell neighbouring floating-point numbers apart."""


def sizes_behind(request_dims: Sequence[str], measured: Floats) -> dict[str, Floats]:
    """Return sizes of the model's request dimensions at which an operation's own have measured values.

    An operation may run over an expression such as `batch*seq` alone: any sizes that give its value do as well, since nothing
    else enters the operation. What the expressions leave open is 1.

    Args:
        request_dims: The operation's request dimensions, each a name or an expression, linear in its first name
            or growing with it.
        measured: Their values, shape (num_points, num_dims).

    Raises:
        InvalidInputError: No sizes give an expression its values.
    """
    sizes: dict[str, Floats] = {}
    # Names first: they leave less open in the expressions.
    for dim, values in sorted(zip(request_dims, measured.T, strict=True), key=lambda pair: len(form_names(pair[0]))):
        unknown = [name for name in form_names(dim) if name not in sizes]
        sizes |= {name: np.ones(len(values)) for name in unknown}
        if unknown:
            sizes[unknown[0]] = _size_behind(dim, unknown[0], sizes, values)
        found = np.broadcast_to(evaluate_form(dim, sizes), values.shape)
        if not np.allclose(found, values, rtol=_TOLERANCE):
            wrong = values[np.argmax(~np.isclose(found, values, rtol=_TOLERANCE))]
            raise InvalidInputError(
                f"request dimension {dim}: no size of {' and '.join(form_names(dim)) or 'the batch'} gives its measured value "
                f"{wrong:g}; pass that size to forward as a number, and name it in request_dims"
            )
    return sizes


def _size_behind(dim: str, name: str, sizes: Mapping[str, Floats], values: Floats) -> Floats:
    """Return the size of one name that gives an expression its values: where it is linear by its slope, else by bisection."""

    def at(size: float | Floats) -> Floats:
        found: Floats = evaluate_form(dim, {**sizes, name: size * np.ones(len(values))})
        return found

    slope = at(2.0) - at(1.0)
    if slope.all():
        size = 1 + (values - at(1.0)) / slope
        if np.allclose(at(size), values, rtol=_TOLERANCE):
            return size
    low, high = np.full(len(values), 1 / _LARGEST), np.full(len(values), _LARGEST)
    for _ in range(_NUM_HALVINGS):
        middle = np.sqrt(low * high)
        reached = at(middle) >= values
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return high
