"""Attributes of an engine's modules as plain values, which identify what a module does."""

from __future__ import annotations

from enum import Enum

Scalar = bool | int | float | str | None


def scalar(value: object) -> Scalar:
    """Return an attribute as a plain value: enumerations by value, anything else by whether it is there."""
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, (bool, int, float, str, type(None))) else True
