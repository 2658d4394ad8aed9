"""Settings that limit steps further, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dooly.errors import InvalidInputError, WorkloadError
from dooly.latency import LinearLatency
from dooly.simulation import (
    KVTransfer,
    Replica,
    Request,
    RoundRobin,
    SchedulerConfig,
    Workload,
    load_compiled_loop,
    simulate,
    simulate_disaggregated,
    simulate_fleet,
)
from dooly.simulation._scheduler import Scheduler

CONFIG = SchedulerConfig(max_model_len=512, num_kv_blocks=1000, max_num_seqs=8, max_num_batched_tokens=100)


def steps(config: SchedulerConfig, *lengths: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Return request and new tokens of each step over requests of so many prompt and output tokens, all there at once."""
    scheduler = Scheduler([Request(number, 0, *length) for number, length in enumerate(lengths)], config)
    for number in range(len(lengths)):
        scheduler.add(number)
    found = []
    while scheduler.has_unfinished:
        step = scheduler.schedule()
        found.append(list(zip(step.requests.tolist(), step.num_new_tokens.tolist(), strict=True)))
        scheduler.complete(step)
    return found


def test_a_long_prompt_gets_its_fair_share() -> None:
    """A limit of 10 is lifted to 100 tokens over two requests, and lies idle for one alone."""
    config = replace(CONFIG, long_prefill_token_threshold=10, long_prefill_token_threshold_adaptive=True)
    assert steps(config, (80, 1), (60, 1)) == [[(0, 50), (1, 50)], [(0, 30), (1, 10)]]
    assert steps(config, (80, 1)) == [[(0, 80)]]
    assert steps(replace(config, long_prefill_token_threshold_adaptive=False), (15, 1), (5, 1)) == [[(0, 10), (1, 5)], [(0, 5)]]


def test_fewer_requests_run_than_a_step_could_hold() -> None:
    """The third waits for one of two seats."""
    assert steps(replace(CONFIG, max_num_active_seqs=2), (5, 1), (5, 2), (5, 1)) == [[(0, 5), (1, 5)], [(1, 1), (2, 5)]]


def test_fewer_tokens_are_scheduled_than_a_step_could_hold() -> None:
    """A prompt of 80 takes two steps of 60."""
    assert steps(replace(CONFIG, max_num_scheduled_tokens=60), (80, 1)) == [[(0, 60)], [(0, 20)]]


def test_prompts_wait_for_their_step_beside_decodes() -> None:
    """Where steps 0, 3, ... take prompts, the rest of the second prompt waits while the first request decodes."""
    config = replace(CONFIG, prefill_schedule_interval=3)
    assert steps(config, (40, 5), (80, 1)) == [[(0, 40), (1, 60)], [(0, 1)], [(0, 1)], [(0, 1), (1, 20)], [(0, 1)]]


def test_prompts_wait_for_their_step_beside_decodes_taken_together() -> None:
    """Two seats. Step 6 takes prompts and leaves the third request waiting, so step 10, when a seat is free, takes its prompt.

    The first decodes to its last token in step 9, beside the second from step 4 on.
    """
    config = SchedulerConfig(64, 200, 2, max_num_batched_tokens=64, block_size=4, prefill_schedule_interval=3)
    requests = Workload((Request(0, 0, 20, 10), Request(1, 3_500_000, 1, 10), Request(2, 3_500_000, 20, 3)), "test")
    rows = simulate(requests, LinearLatency(1e6), config).rows
    assert [row.scheduled_s for row in rows] == [0, 0.004, 0.01]


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"max_num_active_seqs": 9}, "max_num_active_seqs must lie in 1..8"),
        ({"max_num_scheduled_tokens": 0}, "max_num_scheduled_tokens must lie in 1..100"),
        (
            {"max_num_scheduled_tokens": 511, "max_num_batched_tokens": 512, "enable_chunked_prefill": False},
            "without chunked prefill max_num_scheduled_tokens 511 must be at least max_model_len 512",
        ),
        ({"prefill_schedule_interval": 0}, "prefill_schedule_interval must be at least 1"),
    ],
)
def test_limits_are_checked(settings: dict[str, int], rule: str) -> None:
    """A limit that is none, or above what it lowers, is refused."""
    with pytest.raises(InvalidInputError, match=rule):
        replace(CONFIG, **settings)


@pytest.mark.parametrize("limit", ["max_num_scheduled_tokens", "max_num_batched_tokens"])
def test_a_stuck_engine_is_an_error(limit: str) -> None:
    """Nothing of a prompt fits in a step: the first request of which that is so is named, by either loop and any fleet."""
    load_compiled_loop()
    latency, requests = LinearLatency(1e6), Workload((Request(7, 0, 20, 2), Request(8, 0, 100, 2), Request(9, 0, 90, 2)), "test")
    stuck = replace(CONFIG, max_num_batched_tokens=512, enable_chunked_prefill=False)
    object.__setattr__(stuck, limit, 64)  # no settings that are checked come to this
    one, ample = Replica(latency, stuck), Replica(latency, CONFIG)
    runs = (
        lambda: simulate(requests, latency, stuck),
        lambda: simulate_fleet(requests, [one]),
        lambda: simulate_fleet(requests, [one], in_step=True),
        lambda: simulate_fleet(replace(requests, concurrency=2), [one], RoundRobin),
        lambda: simulate_disaggregated(requests, [one], [ample], KVTransfer(1, 1e9)),
    )
    for run in runs:
        with pytest.raises(WorkloadError, match=r"^request 8: never finishes, with 100 prompt tokens \(2 such"):
            run()
