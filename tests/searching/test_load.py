"""Workloads at any request rate."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.errors import WorkloadError
from dooly.searching import Load, read_load
from dooly.simulation import parse_workload

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("given", ["", "rate=7,"])
def test_a_drawn_load_is_the_workload_of_each_rate(given: str) -> None:
    """At a rate, requests arrive as those that are drawn at it, to a nanosecond; a rate that is given is told beside them."""
    load = read_load(f"gamma:{given}cv=2,requests=50,prompt=10-90,output=5,seed=3")
    drawn = parse_workload("gamma:rate=4.5,cv=2,requests=50,prompt=10-90,output=5,seed=3")
    assert load.stated == (7.0 if given else None)
    scaled = load.at(4.5).requests
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in scaled] == [
        (r.num_prompt_tokens, r.num_output_tokens) for r in drawn.requests
    ]
    assert np.abs(np.subtract([r.arrival_ns for r in scaled], [r.arrival_ns for r in drawn.requests])).max() <= 1


def test_a_file_keeps_its_pattern_of_arrivals(tmp_path: Path) -> None:
    """A file's requests arrive at the rate asked for in the mean, in the same pattern; infinite is all at once."""
    file = tmp_path / "requests.csv"
    rows = "\n".join(f"{i},{t},10,2" for i, t in enumerate((0.0, 1.0, 1.5, 6.0)))
    file.write_text(f"request_id,arrival_s,num_prompt_tokens,num_output_tokens\n{rows}\n")
    load = read_load(str(file))
    assert load.rate == pytest.approx(0.5)
    assert [r.arrival_ns for r in load.at(1.0).requests] == [0, 500_000_000, 750_000_000, 3_000_000_000]
    assert {r.arrival_ns for r in load.at(math.inf).requests} == {0}


@pytest.mark.parametrize("are_columns", [True, False])
def test_requests_at_a_rate_are_kept_as_columns(are_columns: bool) -> None:  # noqa: FBT001 - a case
    """A rate changes arrivals alone, prefixes and priorities stay; no request is made for it, so that a million take little."""
    drawn = parse_workload("poisson:rate=1,requests=20000,prompt=10-90,output=5,prefix=8,prefixes=3")
    if not are_columns:
        drawn = replace(drawn, requests=tuple(replace(r, priority=r.request_id % 3) for r in drawn.requests))
    load = Load(drawn, 1.0)
    load.at(2.0)
    tracemalloc.start()
    found = load.at(3.0).requests
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == tuple(replace(r, arrival_ns=round(r.arrival_ns / 3)) for r in drawn.requests)
    assert most_bytes < 160 * len(found)


def test_requests_without_a_rate_are_refused(tmp_path: Path) -> None:
    """Requests that all arrive at once cannot be sent at another rate."""
    file = tmp_path / "requests.csv"
    file.write_text("request_id,arrival_s,num_prompt_tokens,num_output_tokens\n0,2.0,10,2\n1,2.0,10,2\n")
    with pytest.raises(WorkloadError, match="all arrive at once and have no rate"):
        read_load(str(file))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("closed:concurrency=2,requests=4,prompt=10,output=2", "closed loop"),
        ("poisson:requests=4,prompt=10,output=2,turns=2,think=1", "turns are sent when the ones before have ended"),
        ("poisson:rate=2x60+8x30,prompt=10,output=2", "in place of stages"),
        ("trace:path=none.csv,rate=2x60", "in place of stages"),
        ("poisson:rate=4,rate=100,prompt=10,output=2", "'rate' must be given one value, once"),
        ("poisson:rate=two,prompt=10,output=2", "rate must be a number of requests a second, got 'two'"),
    ],
)
def test_what_one_rate_does_not_say_is_refused(text: str, part: str) -> None:
    """Requests that wait for answers, and a rate that changes, are no load that one rate describes."""
    with pytest.raises(WorkloadError, match=part):
        read_load(text)
