"""`dooly profile`; what it measures is the matter of `dooly.measure`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dooly.cli._profile import _note_what_is_out_of_reach
from dooly.measure import ProfileResult

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


def test_flags_that_exclude_each_other_are_refused(tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """An engine is eager or it is not."""
    code, _, err = dooly("profile", "smollm2-135m", "--db", tmp_path / "db", "--enforce-eager", "--no-enforce-eager")
    assert code == 2
    assert "--enforce-eager and --no-enforce-eager exclude each other" in err


@pytest.mark.engine
def test_a_dry_run_makes_no_store(tmp_path: Path) -> None:
    """`--dry-run` tells what is missing and how many points that takes, and leaves no store where there was none."""
    command = [sys.executable, "-m", "dooly", "profile", "smollm2-135m", "--db", str(tmp_path / "db"), "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, f"dooly: note: {tmp_path / 'db'} holds no store yet; this is of an empty one\n")
    (row,) = (line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["smollm2-135m"])
    _, num_operations, num_known, by_family, missing, num_points, *most, wanted, seconds = row
    assert most == ["at", "most"]  # nothing is known, so that nothing tells how soon sweeps end
    assert int(num_operations) > 5
    assert (num_known, by_family, missing, seconds) == ("0", "0", num_operations, "unknown")
    assert 0 < int(wanted) <= int(num_points)
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (ProfileResult("made-up", 6, 90, 40, 0, 0, 7.0, known_least=("norm", 0.02), least_floor=0.01), ""),
        (
            ProfileResult("made-up", 6, 90, 40, 0, 0, 7.0, known_least=("norm", 0.052), least_floor=0.049),
            "norm is known to 5.2%, with a target of 3.0%; by all points but one that would be 4.9%: latencies scatter",
        ),
        (
            ProfileResult("made-up", 6, 90, 40, 0, 0, 7.0, known_least=("norm", 0.04), least_floor=0.029),
            "norm is known to 4.0%, with a target of 3.0%; by all points but one that would be 2.9%: more would hardly pay",
        ),
        (ProfileResult("made-up", 6, 90, 40, 0, 3, 7.0, known_least=("norm", 0.052), least_floor=0.049), ""),
        (ProfileResult("made-up", 6, 90, 40, 0, 0, 7.0, num_infeasible=2), "cannot be run here, as for want of memory: 2;"),
    ],
    ids=["within the target", "scatter", "slack", "cut off", "too large"],
)
def test_what_is_out_of_reach_is_said(result: ProfileResult, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Why a sweep ended above its target, and what could not be run; of what a budget cut off the column `left` tells."""
    _note_what_is_out_of_reach(result, 0.03)
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) is bool(said)
