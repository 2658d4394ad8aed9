"""The latency store: records of measured operations in plain Zarr v3 groups, at a local path or an fsspec URL.

Knows records and keys; nothing of torch, engines or models. Zarr and fsspec load when first needed.
"""

from dbstore._environment import Environment
from dbstore._errors import (
    DamagedRecordError,
    InvalidRecordError,
    RecordNotFoundError,
    SchemaVersionError,
    StoreError,
    StoreNotFoundError,
)
from dbstore._files import Files
from dbstore._json import JSON, JsonObject, canonical_json
from dbstore._record import Record
from dbstore._store import Store
from dbstore._survey import Problem, StoreInfo
from dbstore._sweeps import SCHEMA_VERSION, Kind

__all__ = [
    "JSON",
    "SCHEMA_VERSION",
    "DamagedRecordError",
    "Environment",
    "Files",
    "InvalidRecordError",
    "JsonObject",
    "Kind",
    "Problem",
    "Record",
    "RecordNotFoundError",
    "SchemaVersionError",
    "Store",
    "StoreError",
    "StoreInfo",
    "StoreNotFoundError",
    "canonical_json",
]
