"""The page of a simulation."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dooly.report import write_simulation
from dooly.report._simulation import count_over_time
from dooly.simulation import RequestTimes, SimulationResult

if TYPE_CHECKING:
    from pathlib import Path


def test_open_intervals_are_counted_from_each_change_on() -> None:
    """Intervals that begin and end at one time cancel; the last count is zero."""
    times_s, counts = count_over_time([0.0, 1.0, 2.0], [2.0, 3.0, 2.5])
    assert times_s.tolist() == [0.0, 1.0, 2.0, 2.5, 3.0]
    assert counts.tolist() == [1, 2, 2, 1, 0]


def test_the_report_stands_alone(tmp_path: Path) -> None:
    """The page carries title and script, and loads nothing from elsewhere; requests of one token need no TPOT."""
    rows = (RequestTimes(0, 0.0, 10, 3, 0.1, 0.2, 0.4), RequestTimes(1, 0.1, 10, 1, 0.2, 0.3, 0.3))
    write_simulation(SimulationResult(rows, 4, 0, 0.01), "a title", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "a title" in page
    assert "Plotly.newPlot" in page
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page) == []
