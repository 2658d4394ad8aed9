"""Which kind of call a call is: two calls of one kind run the same graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from inspect import BoundArguments


def describe_call(call: BoundArguments) -> str:
    """Return the kinds of a call's arguments, as `input_ids: int64[_, _], use_cache: False`; those that are None are left out."""
    parameters = call.signature.parameters
    kinds: dict[str, object] = {}
    for name, value in call.arguments.items():
        kinds |= value if parameters[name].kind is parameters[name].VAR_KEYWORD else {name: value}
    return ", ".join(f"{name}: {_kind(value)}" for name, value in kinds.items() if value is not None)


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join('_' * value.ndim)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_kind(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_kind, value))})"
    if isinstance(value, (bool, float, complex, str, type(None))):
        return repr(value)
    return type(value).__name__


def find_ones(value: object) -> object:
    """Return where an argument holds sizes and numbers of 0 or 1, which torch takes for constants, and devices."""
    if isinstance(value, torch.Tensor):
        return (value.device.type, *(size if size in (0, 1) else None for size in value.shape))
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return tuple(map(find_ones, value))
    return value if isinstance(value, int) and value in (0, 1) else None
