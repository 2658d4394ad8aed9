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
                # The output layer is as large as the embedding, where it is another one.
                more = {"both": 1, "output": 0, "neither": -1}[entry["active_holds"]] * rows[name]["embedding_parameters"]
                assert abs((rows[name]["active_parameters"] + more) / entry["active_parameters"] - 1) < 0.01, name


def test_checkpoints_are_as_large_as_published() -> None:
    """Within 2 %, where a maker's files tell; in bfloat16 two bytes for each parameter of those told to three digits."""
    script = _script()
    rows = {row["configuration"]: row for row in json.loads(script.RESULTS.read_text())}
    told = {}
    for entry in json.loads(script.COUNTS.read_text()):
        told |= {name: 2 * entry["parameters"] for name in entry["configurations"] if entry["exact"] and _is_plain(rows[name])}
        if "checkpoint" in entry:
            told |= dict.fromkeys(entry["checkpoint"]["configurations"], entry["checkpoint"]["bytes"])
    assert len(told) > 4
    for name, size in told.items():
        assert abs(script.checkpoint_bytes(rows[name]) / size - 1) < 0.02, name


def _is_plain(row: dict[str, Any]) -> bool:
    return "refused" not in row and row["quantization"] is None
