"""Check the names that a user gives to request dimensions against one call and its graph."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from inspect import BoundArguments

    from dooly.tracing._capture import Capture
    from passes.origins import Origins

RequestDims = Mapping[str, tuple[str | None, ...]]

_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_STEP = re.compile(r"\.?(\w+)|\[(\d+)\]")
_KEY = re.compile(r"\w+(\.\w+|\[\d+\])*")


def check_form(request_dims: object) -> None:
    """Check that names of request dimensions are a mapping from forward's arguments to tuples of names.

    Raises:
        InvalidInputError: They are not, or a name would be read as a formula.
    """
    if not isinstance(request_dims, Mapping):
        raise InvalidInputError(
            f"request_dims: {spell(request_dims)} is no mapping; name forward's arguments, as {{'x': ('batch', 'seq')}}"
        )
    for key, names in request_dims.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            raise InvalidInputError(f"request_dims: {spell(key)} names no argument of forward; write its name as a string")
        place = f"request_dims[{key!r}]"
        if not isinstance(names, tuple | list) or not all(n is None or (isinstance(n, str) and n) for n in names):
            raise InvalidInputError(
                f"{place}: {spell(names)} is no tuple of names; write ('batch', 'seq'), None for a dimension without"
            )
        wrong = [n for n in names if n is not None and not _IDENTIFIER.fullmatch(n)]
        if wrong:
            raise InvalidInputError(f"{place}: {wrong[0]!r} would be read as a formula; write letters, digits and underscores")


def check_names(request_dims: RequestDims, call: BoundArguments) -> None:
    """Check that each key names a tensor or a number of the call, and gives it no more names than it has dimensions.

    Raises:
        InvalidInputError: It does not.
    """
    known = call.arguments
    for key, names in request_dims.items():
        place = f"request_dims[{key!r}]"
        root, *steps = (m[1] if m[1] is not None else int(m[2]) for m in _STEP.finditer(key))
        if root not in known and root not in call.signature.parameters:
            raise InvalidInputError(f"{place}: forward has no argument {root!r}; it has {', '.join(map(repr, known))}")
        value = known.get(str(root))
        for step in steps:
            value = _part(value, step, place)
        _check_number_of_names(names, value, place)


def check_origins(request_dims: RequestDims, capture: Capture, origins: Origins) -> None:
    """Check that the request sets each named dimension, that one dimension has one name, and one name one size in the call.

    A size of 0 or 1, which torch takes for a constant, passes: another call may show more.

    Raises:
        InvalidInputError: The model fixes a named dimension, one has two names, or one name stands for two sizes.
    """
    from passes.graph import shape_of
    from passes.labels import spell_argument

    told: dict[Any, tuple[str, str]] = {}
    values = {symbol: source.value for symbol, source in capture.sources.items()}
    sizes: dict[str, tuple[Any, str]] = {}
    for node in capture.graph.nodes:
        argument = spell_argument(capture.placeholders.get(node.name, ""))
        for axis, (name, size) in enumerate(zip(request_dims.get(argument, ()), shape_of(node) or (), strict=False)):
            if name is None or size in (0, 1):
                continue
            dim = origins.dim(size)
            place = f"request_dims[{argument!r}]: dimension {axis}, named {name!r},"
            if dim.value is not None:
                fixed = f"{dim.expr} = {dim.value}" if dim.expr.free_symbols else f"{dim.value}"
                raise InvalidInputError(f"{place} is fixed by the model ({fixed}); give it None")
            if name in map(str, origins.values):
                raise InvalidInputError(f"{place} has the name of one of the model's own sizes; choose another")
            first, place_of_first = told.setdefault(dim.expr, (name, f"{argument}.size({axis})"))
            if first != name:
                raise InvalidInputError(f"{place} always equals {place_of_first}, named {first!r}; give both one name")
            value = size.xreplace(values)
            known, place_of_known = sizes.setdefault(name, (value, f"{argument}.size({axis})"))
            if known != value:
                raise InvalidInputError(
                    f"{place} is {value} in this call, and {place_of_known}, named alike, {known}; give two names"
                )


def _part(value: Any, step: str | int, place: str) -> Any:  # noqa: ANN401 - any argument
    """Return an item or an attribute of an argument."""
    if value is None:
        return None
    try:
        return value[step] if isinstance(step, int) or isinstance(value, Mapping) else getattr(value, step)
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{place}: {type(value).__name__} has no {step!r} in this call; name what it holds") from error


def _check_number_of_names(names: tuple[str | None, ...], value: object, place: str) -> None:
    """Check that a value has a dimension for each name. A number has one, its own; None may be a tensor in another call."""
    if value is None:
        return
    dims = getattr(value, "ndim", None)
    if isinstance(value, int) and not isinstance(value, bool):
        dims = 1
    if dims is None:
        raise InvalidInputError(f"{place}: it is of type {type(value).__name__}, which has no dimensions; name a tensor")
    if len(names) > dims:
        raise InvalidInputError(f"{place}: {len(names)} names for {dims} dimensions; give at most {dims}")
