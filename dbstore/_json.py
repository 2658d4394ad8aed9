"""Canonical JSON: one text, and so one digest, for equal values."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias, final

from dbstore._errors import InvalidRecordError

JSON: TypeAlias = Any
"""A str, int, finite float, bool, None, sequence or string-keyed mapping of these; checked when it is stored.

A recursive union would say the same and make every reader cast.
"""


def canonical_json(value: JSON) -> str:
    """Return the one JSON text of `value`: sorted keys, no blanks, ASCII.

    Raises:
        InvalidRecordError: `value` holds something JSON cannot express, such as NaN or a NumPy scalar.
    """
    if isinstance(value, JsonObject):
        return value.text
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidRecordError(
            f"JSON value: {error}; give plain str, int, finite float, bool, None, lists and dicts"
        ) from error


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold Python's cyclic garbage collector while much is read: JSON has no cycles, and looking for them takes most of the time.

    Of 32,000 records over batches, 1.2 s without and 0.2 s with it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def digest(data: str | bytes) -> str:
    """Return 32 hexadecimal digits (128 bits) of the SHA-256 of `data`."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:32]


@final
class JsonObject(Mapping[str, JSON]):
    """An immutable, hashable JSON object: lists inside are tuples, objects are `JsonObject`.

    Equal to any mapping of the same canonical JSON, be its sequences lists or tuples.
    """

    __slots__ = ("_parsed", "_text")

    def __init__(self, values: Mapping[str, JSON]) -> None:
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            raise InvalidRecordError(f"JSON object: needs a mapping with string keys, got {values!r}")
        self._text = canonical_json(values)
        self._parsed: dict[str, JSON] | None = None

    @property
    def text(self) -> str:
        """The canonical JSON."""
        return self._text

    @property
    def _values(self) -> dict[str, JSON]:
        # Parsed at the first look: of most records in a store only the text is asked for.
        if self._parsed is None:
            self._parsed = {key: _frozen(value) for key, value in json.loads(self._text).items()}
        return self._parsed

    def __getitem__(self, key: str) -> JSON:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, JsonObject):
            return self._text == other._text
        if not isinstance(other, Mapping):
            return NotImplemented
        try:
            return self._text == canonical_json(other)
        except InvalidRecordError:
            return False

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"JsonObject({self._text})"


def _plain(value: object) -> JSON:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} is not JSON")


def _frozen(value: JSON) -> JSON:
    if isinstance(value, list):
        return tuple(_frozen(item) for item in value)
    return JsonObject(value) if isinstance(value, dict) else value
