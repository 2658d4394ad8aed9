"""The pages of a simulation and of two runs beside each other, and the trace of one."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from dooly import ServingConfig, find_model, load_latency_model, parse_workload, scheduler_config, simulate
from dooly.report import write_comparison, write_perfetto, write_simulation
from dooly.report._run_charts import count_over_time, draw_kv_cache, draw_latencies
from dooly.report._step_shares import step_shares
from dooly.simulation import RequestTimes, SimulationResult, StepLog

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.predict import LatencyModel
    from dooly.simulation import SchedulerConfig

ROWS = (RequestTimes(0, 0.0, 10, 3, 0.1, 0.2, 0.4), RequestTimes(1, 0.1, 10, 1, 0.2, 0.3, 0.3))


class Served(NamedTuple):
    """A small simulation with all that is known of it."""

    result: SimulationResult
    steps: StepLog
    latency: LatencyModel
    config: SchedulerConfig


@pytest.fixture(scope="module")
def served() -> Served:
    """Twelve requests to a listed model on a device whose measurements ship."""
    serving = ServingConfig(max_num_seqs=8, max_num_batched_tokens=256)
    latency = load_latency_model(model=find_model("llama-3.1-8b"), serving=serving, hardware="h200")
    config, steps = scheduler_config(serving, latency), StepLog()
    workload = parse_workload("poisson:rate=100,requests=12,prompt=50-150,output=6")
    return Served(simulate(workload, latency, config, steps=steps), steps, latency, config)


def test_open_intervals_are_counted_from_each_change_on() -> None:
    """Intervals that begin and end at one time cancel; the last count is zero."""
    times_s, counts = count_over_time([0.0, 1.0, 2.0], [2.0, 3.0, 2.5])
    assert times_s.tolist() == [0.0, 1.0, 2.0, 2.5, 3.0]
    assert counts.tolist() == [1, 2, 2, 1, 0]


def test_a_page_stands_alone(tmp_path: Path) -> None:
    """The page carries title and script, and loads nothing from elsewhere; requests of one token need no TPOT."""
    write_simulation(SimulationResult(ROWS, 4, 0, 0.01), "a <title>", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert page.count('<script src="') == 0
    assert page.count("Plotly.newPlot(") == 4
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", page) == []
    assert "Where the time goes" not in page


def test_limits_are_drawn_and_judged(tmp_path: Path) -> None:
    """A limit is a line in its metric's distribution, and a sentence that says whether it is met."""
    result = SimulationResult(ROWS, 4, 0, 0.01)
    figure = draw_latencies({"one": result}, "ttft", {"ttft_p90": 0.15, "tpot_p90": 0.15})
    assert figure is not None
    assert [shape.x0 for shape in figure.layout.shapes] == [150.0]
    write_simulation(result, "run", tmp_path / "page.html", limits_s={"ttft_p90": 0.15, "tpot_p90": 0.15})
    page = (tmp_path / "page.html").read_text()
    assert "TTFT P90: 200.0 ms, at most 150 ms: <b>missed</b>" in page
    assert "TPOT P90: 100.0 ms, at most 150 ms: <b>met</b>" in page


def test_every_request_is_in_a_distribution(served: Served) -> None:
    """The bars of each metric add up to all requests, or all gaps between tokens."""
    for metric in ("ttft", "tpot", "itl", "e2e"):
        figure = draw_latencies({"one": served.result}, metric, {})
        assert figure is not None
        assert sum(figure.data[0].y) == pytest.approx(100)


def test_the_page_of_a_simulation_is_whole_and_the_same_again(served: Served, tmp_path: Path) -> None:
    """With its steps, a simulation's page has KV cache and operations too; equal runs give equal bytes."""
    result, steps, latency, config = served
    for name in ("one.html", "two.html"):
        write_simulation(result, "run", tmp_path / name, steps=steps, latency=latency, config=config)
    page = (tmp_path / "one.html").read_bytes()
    assert page == (tmp_path / "two.html").read_bytes()
    for part in (b"Where the time goes", b"KV blocks", b"Slowest tokens", b"self_attn.attn", b"measured, "):
        assert part in page


def test_shares_are_those_that_were_priced(served: Served) -> None:
    """The sampled shares add up to one, and by source lie near those of all steps priced."""
    shares = step_shares(served.steps, served.latency)
    assert sum(shares.values()) == pytest.approx(1)
    for source, share in served.latency.provenance.items():
        assert sum(value for (_, of), value in shares.items() if of == source) == pytest.approx(share, abs=0.03)


def test_the_kv_cache_is_filled_by_what_is_scheduled(served: Served) -> None:
    """The first point is the first step's blocks; no point exceeds the cache."""
    figure = draw_kv_cache(served.steps, served.config.num_kv_blocks, served.config.block_size)
    first = -(-served.result.rows[0].num_prompt_tokens // served.config.block_size)
    assert figure.data[0].y[0] == pytest.approx(100 * first / served.config.num_kv_blocks)
    assert 0 < max(figure.data[0].y) <= 100


def test_two_runs_stand_beside_each_other(tmp_path: Path) -> None:
    """Both runs are in every chart and have a row a metric, but for metrics that neither has."""
    runs = {"simulated": SimulationResult(ROWS, 4, 0, 0.01), "real": SimulationResult(ROWS[:1], 3, 0, 0.5)}
    write_comparison(runs, "both", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<td" in page
    assert all(f"TTFT, {name}" in page and f"{name}: running" in page for name in runs)
    assert "ITL, " not in page


def test_a_trace_holds_every_step_and_request(served: Served, tmp_path: Path) -> None:
    """Steps are slices one after another that add up to the run's tokens; each request's slices nest and end when it does."""
    write_perfetto(served.result, served.steps, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event["ph"] == "X"]
    assert len(steps) == served.result.num_steps
    ends = [event["ts"] + event["dur"] for event in steps]
    assert all(begin["ts"] >= end - 1e-3 for begin, end in zip(steps[1:], ends, strict=False))
    rows = served.result.rows
    num_tokens = sum(row.num_prompt_tokens + row.num_output_tokens - 1 for row in rows)
    assert sum(event["args"]["tokens"] for event in steps) == num_tokens
    for row in rows:
        own = [event for event in events if event.get("id") == row.request_id]
        assert [event["ph"] for event in own] == ["b", *("b", "e") * 3, "e"]
        assert own[-1]["ts"] == pytest.approx(1e6 * row.finish_s)
        assert own[0]["args"] == {"prompt tokens": row.num_prompt_tokens, "output tokens": row.num_output_tokens}
