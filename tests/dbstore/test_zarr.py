"""The little of Zarr that the store writes itself: `zarr` reads it, and writes the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from dbstore import DamagedRecordError
from dbstore._sweeps import encode_group
from dbstore._zarr import CHUNK, decode_group_file, decode_samples

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

SAMPLES = [np.arange(5), np.array([2**63 - 1, 0]), np.zeros(3), np.empty(0), np.arange(100_000) ** 2 % 997]


def as_zarr_writes(samples_ns: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, bytes]:
    """Return the files of a group `a/b` with the samples, as `zarr` writes them."""
    files: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(files), path="a/b", zarr_format=3, attributes={"layers": 32})
    codecs = (ZstdCodec(level=0), Crc32cCodec())
    chunks = (max(1, samples_ns.size),)
    group.create_array("samples_ns", data=samples_ns, chunks=chunks, compressors=codecs, config={"write_empty_chunks": True})
    return {name: content.to_bytes() for name, content in files.items()}


@pytest.mark.parametrize("samples", SAMPLES, ids=lambda samples: str(samples.size))
def test_zarr_writes_the_same(samples: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Group files, array files and chunks are those of `zarr`, but for the blanks in JSON; and each reads the other's."""
    samples = samples.astype(np.int64)
    ours, theirs = encode_group("a/b", {"layers": 32}, samples), as_zarr_writes(samples)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name] == theirs[name] if name.endswith("c/0") else json.loads(ours[name]) == json.loads(theirs[name])
    for files in (ours, theirs):
        parts = {name.removeprefix("a/b/"): content for name, content in files.items() if name.startswith("a/b/")}
        assert np.array_equal(decode_samples(parts, "place", "go on"), samples)
        assert decode_group_file(parts["zarr.json"]) == {"layers": 32}
    buffer = default_buffer_prototype().buffer
    store = MemoryStore({name: buffer.from_bytes(content) for name, content in ours.items()}, read_only=True)
    array = zarr.open_array(store, path="a/b/samples_ns", mode="r")
    assert np.array_equal(np.asarray(array[:]), samples)


def test_a_chunk_of_another_length_is_damaged() -> None:
    """A chunk whose checksum is right, but which belongs to another array, is named."""
    longer, files = encode_group("", {}, np.arange(4)), encode_group("", {}, np.arange(3))
    with pytest.raises(DamagedRecordError, match=r"^place/samples_ns/c/0: chunk is damaged \(it holds 4 of 3 samples\); go on$"):
        decode_samples(files | {CHUNK: longer[CHUNK]}, "place", "go on")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"zarr_format":2,"attributes":{}}', b'{"zarr_format":3,"node_type":"group"}'])
def test_another_file_is_no_group(content: bytes) -> None:
    """What a store does not write is refused."""
    with pytest.raises(ValueError, match=r".+"):
        decode_group_file(content)
