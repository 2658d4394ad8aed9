"""Canonical JSON: one text for equal values, and immutable objects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbstore import InvalidRecordError, JsonObject, canonical_json

if TYPE_CHECKING:
    from random import Random

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


@given(OBJECTS, st.randoms())
def test_key_order_does_not_enter(values: dict[str, Any], random: Random) -> None:
    """Objects that differ in the order of keys are equal and hash alike."""
    items = list(values.items())
    random.shuffle(items)
    assert JsonObject(dict(items)) == JsonObject(values)
    assert hash(JsonObject(dict(items))) == hash(JsonObject(values))


@given(OBJECTS)
def test_text_keeps_the_value(values: dict[str, Any]) -> None:
    """The canonical text parses to the value it was made from, frozen or not."""
    assert json.loads(canonical_json(values)) == values
    assert json.loads(canonical_json(JsonObject(values))) == values


def test_lists_and_tuples_are_one() -> None:
    """A point given with lists equals the frozen one, which can be a set's member."""
    point = JsonObject({"batch": [[1, 1000], [512, 0]]})
    assert point == {"batch": [[1, 1000], [512, 0]]}
    assert len({point, JsonObject({"batch": ((1, 1000), (512, 0))})}) == 1
    assert point["batch"] == ((1, 1000), (512, 0))
    assert point != {"batch": [[1, 1000]]}


def test_inner_values_cannot_change() -> None:
    """What the caller does to its own mapping later does not reach the object."""
    batch = [1]
    point = JsonObject({"batch": batch, "routing": {"skew": 1.5}})
    batch.append(2)
    assert point["batch"] == (1,)
    assert isinstance(point["routing"], JsonObject)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.int64(1), {1, 2}, b"x"])
def test_what_json_lacks_is_refused(value: object) -> None:
    """A value without a JSON text is refused with advice."""
    with pytest.raises(InvalidRecordError, match="give plain str"):
        JsonObject({"value": value})


@pytest.mark.parametrize("value", [{1: 2}, [1], "text"])
def test_only_objects_with_string_keys(value: object) -> None:
    """Anything but a mapping with string keys is refused."""
    with pytest.raises(InvalidRecordError, match="string keys"):
        JsonObject(value)  # type: ignore[arg-type]
