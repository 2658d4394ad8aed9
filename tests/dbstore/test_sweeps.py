"""The Zarr encoding of record groups and documents: lossless, and no altered byte goes unnoticed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbstore import DamagedRecordError, JsonObject, Record
from dbstore._sweeps import decode_document, decode_sweep, encode_document, encode_sweep, sort_records, sweep_name

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = ("a0", "e0")
ATTRIBUTES = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
POINTS = st.dictionaries(st.sampled_from(["num_tokens", "batch"]), st.integers(0, 9) | st.lists(st.integers()), max_size=2)
SAMPLES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)
MEASURED = st.builds(
    lambda point, samples, attributes: Record(*KEY, point, np.array(samples), attributes), POINTS, SAMPLES, ATTRIBUTES
)
INFEASIBLE = st.builds(
    lambda point, why: Record(*KEY, point, np.array([]), infeasible=why), POINTS, st.sampled_from(["oom", "limit"])
)


def encode(records: tuple[Record, ...]) -> tuple[str, dict[str, bytes]]:
    """Return the name and the files of a group, relative to it."""
    name = sweep_name([record.digest for record in records])
    files = encode_sweep(f"up/{name}", records)
    return name, {path.removeprefix(f"up/{name}/"): files[path] for path in files if path.startswith(f"up/{name}/")}


@given(st.lists(MEASURED | INFEASIBLE, min_size=1, max_size=5))
def test_round_trip(records: list[Record]) -> None:
    """Records come back from their group with every field unchanged."""
    ordered = sort_records(records)
    decoded = decode_sweep(KEY, *encode(ordered), "place")
    assert decoded == ordered
    for before, after in zip(ordered, decoded, strict=True):
        assert (before.point, before.attributes, before.infeasible) == (after.point, after.attributes, after.infeasible)
        assert np.array_equal(before.samples_ns, after.samples_ns)


@given(st.permutations(range(4)))
def test_order_does_not_change_the_name(order: list[int]) -> None:
    """A group of equal content has one name, however its records were ordered."""
    digests = ["a", "b", "c", "d"]
    assert sweep_name([digests[index] for index in order]) == sweep_name(digests)


@given(data=st.data())
def test_altered_byte_is_never_read(data: st.DataObject, make_record: Callable[..., Record]) -> None:
    """With any one byte of any file altered, reading fails by name or returns what was written."""
    records = (make_record(1), make_record(2))
    name, files = encode(records)
    part = data.draw(st.sampled_from(sorted(files)))
    at = data.draw(st.integers(0, len(files[part]) - 1))
    content = bytearray(files[part])
    content[at] ^= data.draw(st.integers(1, 255))
    key = records[0].key
    try:
        decoded = decode_sweep(key, name, files | {part: bytes(content)}, "place")
    except DamagedRecordError as error:
        message = str(error)
    else:
        assert part == "zarr.json"  # a digit that a float does not resolve, or a letter of an escape
        assert decoded == records
        return
    assert message.startswith("place")
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"", b"abc", b"{}"])
@pytest.mark.parametrize("part", ["zarr.json", "samples_ns/zarr.json", "samples_ns/c/0"])
def test_truncated_file_is_named(make_record: Callable[..., Record], part: str, content: bytes) -> None:
    """A file that holds something else is named in the error, with what to do."""
    records = (make_record(1),)
    name, files = encode(records)
    with pytest.raises(DamagedRecordError, match=f"^place/{part}: .*; remove place and run"):
        decode_sweep(records[0].key, name, files | {part: content}, "place")


@pytest.mark.parametrize("part", ["samples_ns/zarr.json", "samples_ns/c/0"])
def test_lost_file_is_named(make_record: Callable[..., Record], part: str) -> None:
    """A file that is gone is named; Zarr alone would read a lost chunk as zeros."""
    records = (make_record(1),)
    name, files = encode(records)
    del files[part]
    with pytest.raises(DamagedRecordError, match=f"^place/{part}: "):
        decode_sweep(records[0].key, name, files, "place")


def test_group_under_another_key_is_refused(make_record: Callable[..., Record]) -> None:
    """A group that was moved to another key, or renamed, does not pass for a record there."""
    records = (make_record(1),)
    name, files = encode(records)
    with pytest.raises(DamagedRecordError, match="differs from its digest"):
        decode_sweep(("other", records[0].environment), name, files, "place")
    with pytest.raises(DamagedRecordError, match="do not match the group's name"):
        decode_sweep(records[0].key, "other", files, "place")


@given(st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists), max_size=4))
def test_document_round_trip(document: dict[str, Any]) -> None:
    """A document comes back equal, as plain lists and dicts."""
    files = encode_document("traces/t0", JsonObject(document))
    assert decode_document(files["traces/t0/zarr.json"], "place") == document


def test_altered_document_is_named() -> None:
    """A document edited by hand is refused."""
    content = encode_document("traces/t0", JsonObject({"layers": 32}))["traces/t0/zarr.json"]
    with pytest.raises(DamagedRecordError, match=r"place/zarr\.json: differs from its digest"):
        decode_document(content.replace(b"32", b"33"), "place")
