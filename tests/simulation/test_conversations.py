"""Conversations: turns that go on from the answer before them, sent when that has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.errors import WorkloadError
from dooly.latency import LatencyBackend
from dooly.simulation import Request, SchedulerConfig, SimulationResult, Turn, Workload, parse_workload, simulate

if TYPE_CHECKING:
    from dooly.batch import Batch

CONFIG = SchedulerConfig(max_model_len=4096, num_kv_blocks=4000, max_num_seqs=64, max_num_batched_tokens=2048)
MS = 1_000_000


class Cost(LatencyBackend):
    """A millisecond a step and one more for each token beyond one a request; counts tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        self.num_tokens += batch.num_tokens
        return MS * (1 + batch.num_tokens - batch.num_reqs)

    def decode_run_ns(self, num_computed_tokens: np.ndarray, num_steps: int) -> np.ndarray:
        """Price decodes, which are all alike."""
        self.num_tokens += num_steps * len(num_computed_tokens)
        return np.full(num_steps, MS)


def _served(requests: list[Request], config: SchedulerConfig = CONFIG) -> SimulationResult:
    return simulate(Workload(tuple(requests), "by hand"), Cost(), config)


TWO_TURNS = [
    Request(0, 0, 32, 17, turn=Turn(0)),
    Request(1, 0, 60, 2, turn=Turn(0, 0, 100 * MS)),
    Request(2, 90 * MS, 1, 1),
]


def test_a_turn_is_sent_when_the_one_before_has_ended_and_finds_what_it_left() -> None:
    """By hand: 32 tokens take 32 ms and 16 more steps 16 ms; 100 ms later, 48 of 60 tokens are cached and 12 take 12 ms."""
    rows = _served(TWO_TURNS).rows
    assert [(r.arrival_s, r.first_token_s, r.finish_s) for r in rows] == [
        (0.0, 0.032, 0.048),
        (0.148, 0.16, 0.161),
        (0.09, 0.091, 0.091),
    ]


def test_without_prefix_caching_a_turn_computes_all_that_was_said() -> None:
    """The same, but all 60 tokens take 60 ms."""
    rows = _served(TWO_TURNS, replace(CONFIG, enable_prefix_caching=False)).rows
    assert [(r.arrival_s, r.first_token_s) for r in rows][1] == (0.148, 0.208)


@pytest.mark.parametrize("ahead", [False, True])
def test_every_turn_waits_for_its_conversation(*, ahead: bool) -> None:
    """Drawn conversations: each turn arrives its pause after the end of the one before; all are served, alike every time."""
    workload = parse_workload("gamma:rate=20,cv=2,requests=40,prompt=5-90,output=1-40,turns=1-5,think=0.25,prefix=32,seed=4")
    config = replace(CONFIG, async_scheduling=ahead)
    cost = Cost()
    rows = simulate(workload, cost, config).rows
    ends = {row.request_id: row.finish_s for row in rows}
    turns = [(row, request.turn) for row, request in zip(rows, workload.requests, strict=True)]
    waits = [row.arrival_s - ends[turn.follows] for row, turn in turns if turn is not None and turn.follows is not None]
    assert len(waits) > 40
    assert waits == pytest.approx([0.25] * len(waits), abs=1e-9)
    assert rows == simulate(workload, Cost(), config).rows
    without = Cost()
    simulate(workload, without, replace(config, enable_prefix_caching=False))
    assert cost.num_tokens < 0.75 * without.num_tokens


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Request(0, 0, 9, 9, turn=Turn(0)), Request(1, 0, 17, 1, turn=Turn(0, 0))], "must begin with the 18 of request 0"),
        (
            [Request(0, 0, 9, 9, turn=Turn(1)), Request(1, 0, 18, 1, turn=Turn(0, 0))],
            "0, which is not ahead of it in conversation 0",
        ),
        ([Request(1, 0, 18, 1, turn=Turn(0, 2)), Request(2, 0, 9, 9, turn=Turn(0))], "which is not ahead of it"),
    ],
)
def test_conversations_that_cannot_be_are_refused(turns: list[Request], message: str) -> None:
    """The message names the request and the rule."""
    with pytest.raises(WorkloadError, match=message):
        Workload(tuple(turns), "w")


def test_a_closed_loop_has_none() -> None:
    """A closed loop's users send what comes next, whosever it is."""
    with pytest.raises(WorkloadError, match="a closed loop has no conversations"):
        Workload((Request(0, 0, 9, 9, turn=Turn(0)), Request(1, 0, 18, 1, turn=Turn(0, 0))), "w", concurrency=1)


def test_a_shared_beginning_lies_within_the_prompt() -> None:
    """Else the next turn would begin with other tokens."""
    with pytest.raises(WorkloadError, match="prefix_ids of 10 tokens must lie within the prompt of 9"):
        Request(0, 0, 9, 9, (1,), 10, turn=Turn(0))


def test_a_first_turn_has_no_pause() -> None:
    """Nothing is before it."""
    with pytest.raises(WorkloadError, match="think_ns must be at least 0, and 0 for a first turn, got 5"):
        Turn(3, None, 5)


def test_of_one_priority_who_came_first_goes_first() -> None:
    """One seat, taken until 31 ms: the request that came at 5 goes before the turn that came at 11, wherever they stand.

    One of a lower number, that came at 20, goes before both.
    """
    requests = [
        Request(0, 0, 1, 1, turn=Turn(0)),
        Request(1, 0, 4, 1, turn=Turn(0, 0, 10 * MS)),
        Request(2, MS, 1, 30),
        Request(3, 5 * MS, 1, 1),
        Request(4, 20 * MS, 1, 1, priority=-1),
    ]
    one_seat = replace(CONFIG, max_num_seqs=1, policy="priority")
    assert [row.scheduled_s for row in _served(requests, one_seat).rows] == [0, 0.033, 0.001, 0.032, 0.031]


def test_of_one_priority_who_came_last_gives_way() -> None:
    """Four blocks and two seats: the turn came at 11 ms and the other at 1, so the turn starts over when blocks lack."""
    requests = [
        Request(0, 0, 1, 1, turn=Turn(0)),
        Request(1, 0, 20, 30, turn=Turn(0, 0, 10 * MS)),
        Request(2, MS, 14, 40),
    ]
    result = _served(requests, replace(CONFIG, num_kv_blocks=5, max_num_seqs=2, policy="priority", enable_prefix_caching=False))
    assert result.num_preemptions == 1
    _, turn, other = result.rows
    assert other.finish_s < turn.finish_s
