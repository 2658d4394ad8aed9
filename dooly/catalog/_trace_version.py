"""Which code a trace was made by, so that what earlier code found is never taken for what this code finds."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_SHAPES_A_TRACE = (
    "passes/**/*.py",
    "dooly/tracing/**/*.py",
    "dooly/engines/**/*.py",
    "dooly/dtypes.py",
    "dooly/catalog/_points.py",
    "dooly/catalog/_table.py",
)


@cache
def trace_version(root: Path = Path(__file__).parents[2]) -> str:
    """Return 32 hexadecimal digits of the code that shapes a trace, comments included.

    A number would have to be raised by hand: forgotten, it serves stale traces, while a trace too many costs seconds.

    Args:
        root: Where the packages lie.
    """
    digest = hashlib.sha256()
    for file in sorted(file for pattern in _SHAPES_A_TRACE for file in root.glob(pattern)):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]
