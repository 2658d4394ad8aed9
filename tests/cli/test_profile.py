"""`dooly profile`; what it measures is the matter of `dooly.measure`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.engine
def test_a_dry_run_makes_no_store(tmp_path: Path) -> None:
    """`--dry-run` counts what is missing, and leaves no store where there was none."""
    command = [sys.executable, "-m", "dooly", "profile", "smollm2-135m", "--db", str(tmp_path / "db"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = (line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["smollm2-135m"])
    _, num_operations, num_points, num_measured, num_left, _, _ = row
    assert int(num_operations) > 5
    assert (num_measured, num_left) == ("0", num_points)
    assert not (tmp_path / "db").exists()
