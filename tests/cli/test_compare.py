"""`dooly compare`: a table, JSON, and errors in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dooly.cli import main
from dooly.simulation import RequestTimes, SimulationResult

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """A simulation, and a run that took a quarter longer."""
    paths = []
    for name, factor in (("simulated.csv", 1.0), ("real.csv", 1.25)):
        rows = tuple(RequestTimes(i, 0.0, 10, 3, 0.0, factor * (1 + i), factor * (3 + i)) for i in range(4))
        SimulationResult(rows, 1, 0, 0.0).write_csv(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths[0], paths[1]


def test_errors_stand_below_both_runs(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A simulation that is a fifth too fast is -20 % in each statistic."""
    assert main(["compare", *files]) == 0
    out = capsys.readouterr().out
    assert out.count("-20.0%") == 12
    assert "TTFT simulated" in out


def test_json_holds_the_same(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Statistics of both sides, their errors and the error of single requests."""
    assert main(["compare", *files, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["tpot"]["errors"]["p90"] == pytest.approx(-0.2)
    assert document["ttft"]["mape"] == pytest.approx(0.2)


def test_the_page_shows_both_runs(files: tuple[str, str], tmp_path: Path) -> None:
    """`--html` draws the two beside each other."""
    assert main(["compare", *files, "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "simulated.csv beside real.csv" in page
    assert "TPOT, real" in page


def test_a_file_that_is_no_run_is_one_line(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what to give."""
    (tmp_path / "notes.csv").write_text("nothing\n")
    assert main(["compare", files[0], str(tmp_path / "notes.csv")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "lacks the column request_id; give LLMServingSim's" in err
