"""Closed loops: users who send the next request when the last one has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dooly.errors import WorkloadError
from dooly.latency import LatencyBackend
from dooly.simulation import LengthRange, SchedulerConfig, SimulationResult, Workload, generate_workload, parse_workload, simulate

if TYPE_CHECKING:
    from dooly.batch import Batch

CONFIG = SchedulerConfig(max_model_len=8192, num_kv_blocks=20_000, max_num_seqs=64, max_num_batched_tokens=2048)


class Cost(LatencyBackend):
    """A millisecond a step, and a hundred microseconds a token beyond one of each request."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return 1_000_000 + 100_000 * (batch.num_tokens - batch.num_reqs)


def _served(text: str, config: SchedulerConfig = CONFIG) -> SimulationResult:
    return simulate(parse_workload(text), Cost(), config)


def test_the_next_request_is_sent_when_one_ends() -> None:
    """One user, three requests of one prompt token and two output tokens: each is sent as the one before ends, by hand."""
    rows = _served("closed:concurrency=1,requests=3,prompt=1,output=2").rows
    assert [(r.arrival_s, r.first_token_s, r.finish_s) for r in rows] == [
        (0.0, 0.001, 0.002),
        (0.002, 0.003, 0.004),
        (0.004, 0.005, 0.006),
    ]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("concurrency", [1, 7, 32, 500])
def test_no_more_are_under_way_than_there_are_users(concurrency: int, *, ahead: bool) -> None:
    """At every moment at most so many requests have been sent and not ended, and as many as can be; so it is ahead too."""
    text = f"closed:concurrency={concurrency},requests=100,prompt=5-900,output=1-40,seed=3"
    rows = _served(text, replace(CONFIG, async_scheduling=ahead)).rows
    assert len(rows) == 100
    for row in rows:
        under_way = sum(r.arrival_s <= row.arrival_s < r.finish_s for r in rows)
        assert under_way <= concurrency
    assert sum(r.arrival_s == 0 for r in rows) == min(concurrency, 100)
    ends = {r.finish_s for r in rows} | {0.0}
    assert all(r.arrival_s in ends for r in rows)


def test_longer_outputs_spread_the_prompts() -> None:
    """With one output token all users prefill at once and wait for each other; with 64 they spread, and TTFT falls."""
    short, long = (float(_served(f"closed:concurrency=32,requests=320,prompt=3100,output={n}").ttft_s().mean()) for n in (1, 64))
    assert long < short


def test_open_and_closed_loops_agree_on_the_same_arrivals() -> None:
    """Replayed as an open loop at the times that it gave, a closed loop is served alike, step for step."""
    closed = _served("closed:concurrency=4,requests=60,prompt=5-900,output=1-40,seed=1")
    drawn = generate_workload(60, float("inf"), LengthRange(5, 900), LengthRange(1, 40), seed=1).requests
    arrivals = [round(1e9 * row.arrival_s) for row in closed.rows]
    timed = tuple(
        type(r)(r.request_id, ns, r.num_prompt_tokens, r.num_output_tokens) for r, ns in zip(drawn, arrivals, strict=True)
    )
    replayed = simulate(Workload(timed, "replayed"), Cost(), CONFIG)
    assert replayed.rows == closed.rows
    assert replayed.num_steps == closed.num_steps


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("closed:requests=3,prompt=1,output=2", "'concurrency' is missing"),
        ("closed:concurrency=0,requests=3,prompt=1,output=2", "a closed loop needs a concurrency of at least 1, got 0"),
        ("closed:concurrency=2,requests=3,prompt=1,output=2,rate=3", "unknown key 'rate'; closed knows concurrency"),
    ],
)
def test_wrong_specifications_are_refused(text: str, rule: str) -> None:
    """Each in one line."""
    with pytest.raises(WorkloadError, match=rule):
        parse_workload(text)


def test_requests_of_a_closed_loop_have_no_times_of_their_own() -> None:
    """Users and arrivals are two things that would contradict each other."""
    timed = parse_workload("poisson:rate=1,requests=3,prompt=1,output=2")
    with pytest.raises(WorkloadError, match="requests that arrive at 0"):
        Workload(timed.requests, "both", concurrency=2)
