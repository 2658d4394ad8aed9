"""The page of a search."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from dooly import find_model, search
from dooly.report import write_search
from dooly.report._search import _pareto
from dooly.simulation import FleetLayout

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.searching import SearchResult


@pytest.fixture(scope="module")
def result() -> SearchResult:
    """Two candidates that serve, and two that cannot."""
    return search(
        [find_model("llama-3.1-8b")],
        ["h200"],
        "poisson:requests=20,prompt=64,output=4",
        {"ttft_p90": 0.1},
        choices={"max_num_seqs": (2, 8), "tensor_parallel_size": (1, 3)},
        num_processes=1,
    )


def test_the_page_stands_alone_and_is_the_same_again(result: SearchResult, tmp_path: Path) -> None:
    """It has the best candidate's command, all that serve, and the reasons of the others; it loads nothing."""
    for name in ("one.html", "two.html"):
        write_search(result, tmp_path / name)
    page = (tmp_path / "one.html").read_text()
    assert page == (tmp_path / "two.html").read_text()
    assert result.best is not None
    assert result.best.candidate.command in page
    assert page.count('<tr class="best">') == 1
    assert "32 attention heads cannot be divided over 3 ranks" in page
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page) == []


def test_engines_that_do_not_serve_are_named(tmp_path: Path) -> None:
    """Where numbers of engines vary and none serves within the limits, each stands with its number beside the reason."""
    found = search(
        [find_model("llama-3.1-8b")],
        ["h200"],
        "poisson:requests=4,prompt=64,output=4",
        {"ttft_p90": 0.1},
        choices={"tensor_parallel_size": (3,)},
        fleets=(FleetLayout(), FleetLayout(2, "least-loaded")),
        num_processes=1,
    )
    write_search(found, tmp_path / "found.html")
    assert "h200, engines 1; h200, engines 2 least-loaded" in (tmp_path / "found.html").read_text()


def test_nothing_lies_above_the_frontier(result: SearchResult) -> None:
    """Every simulation is a point, and none has more of both than a point of the frontier."""
    figure = _pareto(result, ["max_num_seqs"])
    (frontier,) = (trace for trace in figure.data if trace.name == "Pareto frontier")
    drawn = [trace for trace in figure.data if trace.mode == "lines+markers"]
    points = [point for trace in drawn for point in zip(trace.x, trace.y, strict=True)]
    assert len(points) == result.num_simulations
    corners = list(zip(frontier.x, frontier.y, strict=True))
    assert set(corners) <= set(points)
    assert all(any(x <= right and y <= top for right, top in corners) for x, y in points)
    assert not any(x > right and y > top for x, y in points for right, top in corners)
