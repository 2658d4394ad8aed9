"""The page of published models says what the benchmark found."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def _script() -> Any:  # noqa: ANN401 - a module
    spec = importlib.util.spec_from_file_location("published_page", ROOT / "benchmarks" / "published_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_results() -> None:
    """Results, makers' counts and page change together; each configuration has one row, and each count a configuration."""
    script = _script()
    rows, counts = (json.loads(path.read_text()) for path in (script.RESULTS, script.COUNTS))
    assert (ROOT / "docs" / "published-models.md").read_text() == script.page(rows, counts)
    names = [row["configuration"] for row in rows]
    assert len(names) == len(set(names))
    assert {name for entry in counts for name in entry["configurations"]} <= set(names)


def test_counts_are_as_published() -> None:
    """Where a maker tells the count to three digits, the trace has it within 1 %."""
    script = _script()
    rows = {row["configuration"]: row for row in json.loads(script.RESULTS.read_text())}
    for entry in json.loads(script.COUNTS.read_text()):
        for name in entry["configurations"] if entry["exact"] else ():
            if "refused" not in rows[name]:
                assert abs(rows[name]["parameters"] / entry["parameters"] - 1) < 0.01, name
