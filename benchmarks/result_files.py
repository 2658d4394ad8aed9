"""What tables of results share: how files are read and shares are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> Any:  # noqa: ANN401 - a document
    """Return a file of `benchmarks/results`."""
    return json.loads((RESULTS / name).read_text())


def percent(value: float, *, digits: int = 1, sign: bool = True) -> str:
    """Show a share."""
    return f"{100 * value:{'+' if sign else ''}.{digits}f} %"
