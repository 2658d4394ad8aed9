"""Environments: checked fields, exact documents, stable digests."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from typing import Any

import pytest

from dbstore import Environment, InvalidRecordError, JsonObject, StoreError
from dbstore._json import canonical_json, digest


def test_document_round_trip(environment: Environment) -> None:
    """An environment comes back equal from its document."""
    assert Environment.from_json(environment.to_json()) == environment


def test_digest_is_stable(environment: Environment) -> None:
    """The digest is pinned: a change of it would orphan every stored record."""
    assert environment.digest == "863c73d184c9c54ef0be54f3005b70f3"


@pytest.mark.parametrize("name", [field.name for field in fields(Environment)])
def test_every_field_changes_the_digest(environment: Environment, name: str) -> None:
    """Two environments that differ in one field have two digests."""
    others: dict[str, Any] = {
        "later": {"fan": "red"},
        "device_kind": "cuda",
        "execution_mode": "cudagraph",
        "block_size": 16,
        "num_threads": None,
    }
    assert replace(environment, **{name: others.get(name, "other")}).digest != environment.digest


@pytest.mark.parametrize("name", [field.name for field in fields(Environment) if field.default is MISSING])
def test_missing_field_is_named(environment: Environment, name: str) -> None:
    """A document that lacks a field is refused by that field's name."""
    document = environment.to_json()
    del document[name]
    with pytest.raises(StoreError, match=f"lacks {name};"):
        Environment.from_json(document)


LATER = ("cuda_version", "clocks", "host", "model_runner")


def test_fields_of_a_gpu_are_kept_where_they_are_known(environment: Environment) -> None:
    """What only a GPU has is left out of a CPU's document, as in documents from before these fields, and kept of a GPU."""
    assert set(LATER).isdisjoint(environment.to_json())
    on_gpu = replace(environment, device_kind="cuda", num_threads=None, **dict.fromkeys(LATER, "x"))
    assert {on_gpu.to_json()[name] for name in LATER} == {"x"}
    assert Environment.from_json(on_gpu.to_json()) == on_gpu


def test_fields_of_a_later_version_are_kept(environment: Environment) -> None:
    """A document with a field of a later version is read; the field stays part of the environment and of its digest."""
    document = environment.to_json() | {"fan": {"colours": ["red"]}, "later": 1}
    newer = Environment.from_json(document)
    assert newer.to_json() == JsonObject(document)
    assert newer.digest == digest(canonical_json(document))
    assert len({newer, Environment.from_json(newer.to_json()), environment, replace(newer, later={"fan": 2})}) == 3
    assert replace(newer, later={}) == environment


def test_a_known_field_is_not_hidden_among_later_ones(environment: Environment) -> None:
    """What this version knows has one place only."""
    with pytest.raises(InvalidRecordError, match=r"Environment\.later: has device; give a known field by its own name"):
        replace(environment, later={"device": "other"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", ""),
        ("driver", " 6.8"),
        ("engine", None),
        ("dtype", 16),
        ("device_kind", "tpu"),
        ("execution_mode", "lazy"),
        ("block_size", 0),
        ("dtype", None),
        ("block_size", True),
        ("num_threads", -1),
        ("num_threads", "2"),
        ("quantization", ""),
    ],
)
def test_invalid_field_is_named(environment: Environment, name: str, value: object) -> None:
    """An invalid value is refused by its field's name, and shown."""
    with pytest.raises(InvalidRecordError, match=rf"Environment\.{name}: must .*, got {value!r}"):
        replace(environment, **{name: value})  # type: ignore[arg-type]
