"""The little of Zarr v3 that a store is made of: group files, and one array of one chunk, little-endian int64, zstd, CRC32C.

Written out and read here, and not through `zarr`, since most groups are small: opening each through a general reader takes a
hundred times as long as its content, and loading that reader a fifth of a second. The tests have `zarr` read what this writes.
Format: https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from dbstore._errors import DamagedRecordError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dbstore._json import JSON

ARRAY = "samples_ns"
"""The array of a group."""
METADATA = "zarr.json"
"""The file that describes a group or an array."""
CHUNK = f"{ARRAY}/c/0"
"""The array's one chunk."""
_GROUP = {"zarr_format": 3, "node_type": "group"}
_CHECKSUM_BYTES = 4


def encode_group_file(attributes: Mapping[str, JSON]) -> bytes:
    """Return the file of a group."""
    return _text({"attributes": attributes, **_GROUP})


def decode_group_file(content: bytes) -> dict[str, JSON]:
    """Return the attributes in the file of a group.

    Raises:
        ValueError: it is no such file, or says anything else.
    """
    document = json.loads(content)
    attributes = document.pop("attributes") if isinstance(document, dict) and "attributes" in document else None
    if document != _GROUP or not isinstance(attributes, dict):
        raise ValueError("not the file of a Zarr v3 group, or not as a store writes it")
    return attributes


def encode_samples(samples_ns: npt.NDArray[np.int64]) -> dict[str, bytes]:
    """Return the files of the array, by their paths in its group."""
    from google_crc32c import value
    from numcodecs.zstd import Zstd

    files = {f"{ARRAY}/{METADATA}": _text(_array(samples_ns.size))}
    if samples_ns.size:
        packed = bytes(Zstd(level=0).encode(np.ascontiguousarray(samples_ns, dtype="<i8").tobytes()))
        files[CHUNK] = packed + value(packed).to_bytes(_CHECKSUM_BYTES, "little")
    return files


def decode_samples(files: Mapping[str, bytes], place: str, next_step: str) -> npt.NDArray[np.int64]:
    """Return the samples of the group at `place`, shape (num_samples,), read only.

    Raises:
        DamagedRecordError: a file is missing, was altered or fails its checksum; the message names it and ends with `next_step`.
    """
    metadata = f"{ARRAY}/{METADATA}"
    try:
        found = json.loads(files[metadata])
        (size,) = found["shape"]
    except (ValueError, LookupError, TypeError) as error:
        raise DamagedRecordError(f"{place}/{metadata}: is no Zarr array file ({error!r}); {next_step}") from error
    if found != _array(size):
        raise DamagedRecordError(f"{place}/{metadata}: is no Zarr array file as a store writes it; {next_step}")
    if not size:
        return np.empty(0, dtype=np.int64)
    if CHUNK not in files:
        raise DamagedRecordError(f"{place}/{CHUNK}: chunk is missing; {next_step}")
    try:
        return _decode_chunk(files[CHUNK], size)
    except (ValueError, RuntimeError) as error:
        raise DamagedRecordError(f"{place}/{CHUNK}: chunk is damaged ({error}); {next_step}") from error


def _decode_chunk(content: bytes, size: int) -> npt.NDArray[np.int64]:
    from google_crc32c import value
    from numcodecs.zstd import Zstd

    packed, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if value(packed).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        raise ValueError("its checksum differs")
    samples = np.frombuffer(Zstd().decode(packed), dtype="<i8").astype(np.int64, copy=False)
    if samples.size != size:
        raise ValueError(f"it holds {samples.size} of {size} samples")
    return samples


def _array(size: int) -> dict[str, JSON]:
    """Return the description of an array of so many samples; a chunk has one place at least."""
    return {
        "shape": [size],
        "data_type": "int64",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [size or 1]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "zstd", "configuration": {"level": 0, "checksum": False}},
            {"name": "crc32c"},
        ],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _text(document: Mapping[str, JSON]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
