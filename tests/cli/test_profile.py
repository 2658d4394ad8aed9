"""`dooly profile`; what it measures is the matter of `dooly.measure`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.engine
def test_a_dry_run_makes_no_store(tmp_path: Path) -> None:
    """`--dry-run` tells what is missing and how many points that takes, and leaves no store where there was none."""
    command = [sys.executable, "-m", "dooly", "profile", "smollm2-135m", "--db", str(tmp_path / "db"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = (line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["smollm2-135m"])
    _, num_operations, num_known, by_family, missing, num_points, wanted, seconds = row
    assert int(num_operations) > 5
    assert (num_known, by_family, missing, seconds) == ("0", "0", num_operations, "unknown")
    assert 0 < int(wanted) <= int(num_points)
    assert not (tmp_path / "db").exists()
