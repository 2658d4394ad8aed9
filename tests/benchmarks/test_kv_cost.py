"""What policies cost is held to closed forms and bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("torch")

from dooly.kv_policy import HeadSizes, KVPolicy
from dooly.predict import selection_work

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "kv_cost.py"


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a module
    """`benchmarks/kv_cost.py`."""
    return load_script("benchmarks/kv_cost.py")


def test_a_selection_is_held_to_the_form_that_the_simulator_has(tmp_path: Path) -> None:
    """The form in float32 is the shipped one, and the file says how many times were taken; only a bound makes the script fail."""
    file = tmp_path / "cost.json"
    command = [sys.executable, str(SCRIPT), "--num-tokens", "1024", "--repeats", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode == 0) == (not done.stderr), done.stderr
    found = json.loads(file.read_text())
    (row,) = found["selection"]
    work = selection_work(KVPolicy("laprox", 0.2), HeadSizes(8, 2, 64, 2048), 1024, "float32")
    assert (found["repeats"], row["flops"], row["bytes"]) == (1, work.float32_flops, work.bytes)


def test_what_lies_beyond_the_bounds_is_told(script: Any) -> None:  # noqa: ANN401 - a module
    """Long prompts whose time falls less than half as much as FLOPs, and selections 1.5 times their form or its inverse."""
    slow, fast = ({"num_tokens": 16_384, "whole_flops": 3, "sparse_flops": 1, "whole_s": 3, "sparse_s": s} for s in (2.1, 1.9))
    short = {**slow, "num_tokens": 8192}
    near, above, below = ({"num_tokens": 8192, "closed_form_s": 1, "measured_s": s} for s in (1.4, 1.6, 0.6))
    assert script.beyond_bounds({"prefill": [fast, short], "selection": [near]}) == []
    told = script.beyond_bounds({"prefill": [slow], "selection": [above, below]})
    assert [line.split(",")[0] for line in told] == ["CritiPrefill", "LaProx", "LaProx"]


def test_what_was_measured_last_lies_within_the_bounds(script: Any) -> None:  # noqa: ANN401 - a module
    """The results that the page shows hold what it says, at 16,384 tokens too."""
    found = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "kv-cost.json").read_text())
    assert script.beyond_bounds(found) == []
    assert max(row["num_tokens"] for row in found["prefill"]) >= script.LONG
