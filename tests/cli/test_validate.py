"""`dooly validate --real`: what it does not take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POISSON = "poisson:rate=2,requests=4,prompt=64,output=16"


@pytest.mark.parametrize("flag", [("--max-num-seqs", 128), ("--dtype", "bfloat16"), ("--repeat", 2)])
def test_settings_of_the_engine_are_refused_beside_kept_runs(
    flag: tuple[str, object], db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]
) -> None:
    """The runs say how they were served: a flag that would be ignored exits with 2 and is named, also where it is the default."""
    code, out, err = dooly("validate", "smollm2-135m", "--db", db, "--workload", POISSON, "--real", tmp_path / "r.xz", *flag)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{flag[0]}: the runs that --real names" in err


def test_kept_runs_need_no_settings(db: Path, tmp_path: Path, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """Without such a flag the file is read; one that is missing is named."""
    code, out, err = dooly("validate", "smollm2-135m", "--db", db, "--workload", POISSON, "--real", tmp_path / "r.xz")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "r.xz: holds no kept runs" in err
