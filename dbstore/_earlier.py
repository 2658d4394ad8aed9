"""Earlier versions of the layout: what they wrote reads as what this version writes.

Version 1 listed the sizes of a point without names, `{"dims": [32]}`. Groups are never changed, so a store that was begun in it
keeps such groups until they are compacted; each record then goes by the digest of its content as it reads now, so that a record
of both forms is one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dbstore._json import JSON
    from dbstore._record import Record

READABLE_VERSIONS = (1, 2)
"""Versions of the layout that this code reads; it writes the last."""
_UNNAMED = "dims"


def current_point(point: Mapping[str, JSON]) -> Mapping[str, JSON]:
    """Return a point in the form of this version."""
    if point.keys() != {_UNNAMED}:
        return point
    return {f"d{place}": size for place, size in enumerate(point[_UNNAMED])}


def current_record(record: Record) -> Record:
    """Return a record with its point in the form of this version."""
    point = current_point(record.point)
    return record if point is record.point else replace(record, point=point)
