"""The race of simulations runs, on a few requests, without what it races against."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_all_arms_of_our_own_run(tmp_path: Path) -> None:
    """Each prints a line; the loops in Python and compiled take the same steps."""
    rows = "\n".join(f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,{300 + i % 200},{5 + i % 30}" for i in range(270))
    trace = tmp_path / "trace.csv"
    trace.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}\n")
    command = [sys.executable, str(ROOT / "benchmarks" / "simulate.py"), str(trace), "--few", "260", "--repeat", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["dooly, h200", "dooly, fixed", "dooly in Python, h200"]
    assert [(line["arm"], line["requests"]) for line in lines] == [
        *((name, 260) for name in names),
        *((name, 270) for name in names[:2]),
    ]
    assert lines[0]["steps"] == lines[2]["steps"]
    assert all(line["median_s"] > 0 for line in lines)
