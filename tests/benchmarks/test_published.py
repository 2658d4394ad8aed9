"""The page of published models says what the benchmark found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a module
    """`benchmarks/published_page.py`."""
    return load_script("benchmarks/published_page.py")


def test_the_page_is_made_of_the_results(script: Any) -> None:  # noqa: ANN401 - a module
    """Results, makers' counts and page change together; each configuration has one row, and each count a configuration."""
    rows, counts = (json.loads(path.read_text()) for path in (script.RESULTS, script.COUNTS))
    assert (ROOT / "docs" / "published-models.md").read_text() == script.page(rows, counts)
    names = [row["configuration"] for row in rows]
    assert len(names) == len(set(names))
    assert {name for entry in counts for name in entry["configurations"]} <= set(names)


def test_counts_are_as_published(script: Any) -> None:  # noqa: ANN401 - a module
    """Where a maker tells the count to three digits, the trace has it within 1 %."""
    rows = {row["configuration"]: row for row in json.loads(script.RESULTS.read_text())}
    for entry in json.loads(script.COUNTS.read_text()):
        for name in entry["configurations"] if entry["exact"] else ():
            if "refused" not in rows[name]:
                assert abs(rows[name]["parameters"] / entry["parameters"] - 1) < 0.01, name
                # The output layer is as large as the embedding, where it is another one.
                more = {"both": 1, "output": 0, "neither": -1}[entry["active_holds"]] * rows[name]["embedding_parameters"]
                assert abs((rows[name]["active_parameters"] + more) / entry["active_parameters"] - 1) < 0.01, name


def test_checkpoints_are_as_large_as_published(script: Any) -> None:  # noqa: ANN401 - a module
    """Within 2 %, where a maker's files tell; in bfloat16 two bytes for each parameter of those told to three digits."""
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
