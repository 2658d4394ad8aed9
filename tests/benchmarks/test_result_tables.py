"""The tables of pages say what the benchmarks found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a module
    """`benchmarks/result_tables.py`."""
    return load_script("benchmarks/result_tables.py")


def test_pages_are_made_of_the_results(script: Any) -> None:  # noqa: ANN401 - a module
    """Each page is as the script would write it, and each table stands in a page."""
    pages = {page: page.read_text() for page in script.PAGES}
    for page, text in pages.items():
        assert script.filled(text) == text, f"{page}: run benchmarks/result_tables.py"
    for name in script.TABLES:
        assert any(f"<!-- table {name} -->" in text for text in pages.values()), name


def test_an_error_is_that_of_layers_where_a_policy_acts(script: Any) -> None:  # noqa: ANN401 - a module
    """CritiPrefill computes its first layer whole, which has no error and does not count; others act in all."""
    told = {row[0]: row[-1] for row in script.TABLES["kv-serving"]()}
    found = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "kv-error-llama-3.1-8b.json").read_text())["errors"]
    layers = {each["policy"]: [layer["output"] for layer in each["layers"]] for each in found}
    whole, second = layers["critiprefill"]
    assert whole == 0
    assert told["`critiprefill`"] == f"{100 * second:.1f} %"
    assert told["`snapkv`"] == f"{50 * sum(layers['snapkv']):.1f} %"


def test_a_table_takes_the_place_of_an_older_one(script: Any) -> None:  # noqa: ANN401 - a module
    """What stands between the two lines is replaced, what stands around them kept, and a head has a line below it."""
    page = "before\n\n<!-- table gpu-runs -->\n\nold\n\n<!-- end of gpu-runs -->\n\nbehind\n"
    lines = script.filled(page).splitlines()
    assert (lines[0], lines[2], lines[-3], lines[-1]) == (
        "before",
        "<!-- table gpu-runs -->",
        "<!-- end of gpu-runs -->",
        "behind",
    )
    assert "old" not in lines
    assert lines[5] == "|---" * 9 + "|"
    assert lines[6].startswith("| Llama 3.1 8B, one rank | -2.2 % |")
