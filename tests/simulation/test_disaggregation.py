"""Prefill and decode on engines of their own: timelines worked out by hand, and what must hold for every workload."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.latency import HostTimes, LatencyBackend
from dooly.simulation import (
    AttentionKind,
    FleetResult,
    KVCacheGroup,
    KVTransfer,
    LeastLoaded,
    PrefixAware,
    Replica,
    Request,
    RoundRobin,
    SchedulerConfig,
    StepLog,
    VllmBalancing,
    Workload,
    parse_workload,
    simulate,
    simulate_disaggregated,
)
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from dooly.batch import Batch
    from dooly.simulation._steps import ScheduledStep

MS = 1_000_000
AMPLE = SchedulerConfig(max_model_len=1000, num_kv_blocks=1001, max_num_seqs=4, max_num_batched_tokens=100)
FIVE_MS = KVTransfer(block_bytes=1_000_000, bytes_per_s=200e6)
"""A block of 16 tokens takes 5 ms."""
FREE = KVTransfer(block_bytes=1, bytes_per_s=math.inf)


class Steps(LatencyBackend):
    """Takes 10 ms for every step."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        assert batch.num_reqs
        return 10 * MS


class ByTokens(LatencyBackend):
    """Prices each step by its tokens and what they attend to."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return MS + 10_000 * batch.num_tokens + 100 * sum(batch.num_computed_tokens)


def workload(*rows: tuple[float, int, int], prefix_ids: tuple[int, ...] = ()) -> Workload:
    """Make a workload of (arrival in ms, prompt tokens, output tokens); prompts may begin with blocks of these ids."""
    return Workload(tuple(Request(i, round(ms * MS), *sizes, prefix_ids, 16) for i, (ms, *sizes) in enumerate(rows)), "test")


def times_ms(fleet: FleetResult) -> list[tuple[float, float, float]]:
    """Return (scheduled, first token, finish) of each row in ms."""
    return [
        (round(1e3 * row.scheduled_s, 6), round(1e3 * row.first_token_s, 6), round(1e3 * row.finish_s, 6))
        for row in fleet.result.rows
    ]


def served(
    requests: Workload, sides: tuple[int, int] = (1, 1), transfer: KVTransfer = FIVE_MS, *, passes_first_token: bool = False
) -> FleetResult:
    """Serve with so many ample engines on each side."""
    first, second = ([Replica(Steps(), AMPLE)] * number for number in sides)
    return simulate_disaggregated(requests, first, second, transfer, passes_first_token=passes_first_token)


def test_a_request_is_computed_moved_and_continued() -> None:
    """Prefill until 10, one block until 15; the decode engine computes the last token again, and its first comes out at 25."""
    fleet = served(workload((0, 10, 3)))
    assert times_ms(fleet) == [(0, 25, 45)]
    assert [one.result.num_steps if one.result else 0 for one in fleet.replicas] == [1, 3]
    assert [one.role for one in fleet.replicas] == ["prefill", "decode"]


def test_a_first_token_that_is_passed_on_comes_out_with_the_prefill() -> None:
    """Users see it at 10; the decode engine generates the other two by 25 and 35, so the gaps are 15 and 10 ms."""
    fleet = served(workload((0, 10, 3)), passes_first_token=True)
    assert times_ms(fleet) == [(0, 10, 35)]
    assert fleet.result.token_gaps is not None
    assert sorted(fleet.result.token_gaps.gaps_ns.tolist()) == [10 * MS, 15 * MS]


def test_one_token_that_is_passed_on_needs_no_decode() -> None:
    """The request ends with its prefill and goes nowhere."""
    fleet = served(workload((0, 10, 1)), passes_first_token=True)
    assert times_ms(fleet) == [(0, 10, 10)]
    assert fleet.placements == {"prefill_replica": (0,), "decode_replica": (-1,)}
    assert fleet.replicas[1].result is None


@pytest.mark.parametrize(("sides", "finish"), [((1, 1), (35, 45)), ((2, 1), (35, 45)), ((1, 2), (35, 40)), ((2, 2), (35, 35))])
def test_a_link_moves_one_request_at_a_time(sides: tuple[int, int], finish: tuple[int, int]) -> None:
    """Both prompts are computed at 10. Over a link that both share the second comes at 20 instead of 15.

    At one decode engine it then waits for the step that began at 15; at its own it starts at once.
    """
    fleet = served(workload((0, 10, 2), (0, 10, 2)), sides)
    assert tuple(row[2] for row in times_ms(fleet)) == finish


def test_a_prefill_engine_keeps_blocks_until_they_have_been_moved() -> None:
    """It has two blocks, which the first prompt fills: the second starts at 20, when these have been moved, not at 10."""
    small = Replica(Steps(), replace(AMPLE, num_kv_blocks=3))
    fleet = simulate_disaggregated(workload((0, 32, 1), (0, 32, 1)), [small], [Replica(Steps(), AMPLE)], FIVE_MS)
    assert times_ms(fleet) == [(0, 30, 30), (20, 50, 50)]


def test_a_decode_engine_loads_beside_its_slots_but_starts_no_load_without_one() -> None:
    """One slot. Both requests that come at 10 are loaded by 15 and 20; the third, there at 20, when the slot is free of both: 55.

    The first decodes from 15 to 35, the second to 55; the third is loaded by 60.
    """
    one = Replica(Steps(), replace(AMPLE, max_num_seqs=1))
    fleet = simulate_disaggregated(workload((0, 10, 2), (0, 10, 2), (5, 10, 2)), [Replica(Steps(), AMPLE)], [one], FIVE_MS)
    assert times_ms(fleet) == [(0, 25, 35), (0, 45, 55), (10, 70, 80)]


def test_what_a_decode_engine_has_is_not_moved_again() -> None:
    """40 tokens are three blocks, 15 ms; of the second prompt with the same first 32, one block is left."""
    fleet = served(workload((0, 40, 1), (100, 40, 1), prefix_ids=(7, 8)))
    assert times_ms(fleet) == [(0, 35, 35), (100, 125, 125)]


def test_a_link_takes_its_latency_beside_the_bytes() -> None:
    """Two milliseconds before the tokens are there, in which the next request's bytes are under way already."""
    fleet = served(workload((0, 10, 1), (0, 10, 1)), (1, 2), replace(FIVE_MS, latency_ns=2 * MS))
    assert times_ms(fleet) == [(0, 27, 27), (0, 32, 32)]


def test_users_wait_for_the_decode_engine() -> None:
    """One user, two requests: the second is sent when the last token of the first is out."""
    requests = Workload(tuple(Request(i, 0, 10, 2) for i in range(2)), "closed", concurrency=1)
    fleet = served(requests)
    assert times_ms(fleet) == [(0, 25, 35), (35, 60, 70)]
    assert fleet.result.rows[1].arrival_s == 0.035


SPECS = st.builds(
    "{}requests={},prompt=1-{},output=1-{},seed={}{}".format,
    st.sampled_from(
        ["poisson:rate=20,", "poisson:rate=300,", "poisson:rate=inf,", "closed:concurrency=1,", "closed:concurrency=7,"]
    ),
    st.integers(1, 25),
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(0, 99),
    st.sampled_from(["", ",prefix=32,prefixes=2"]),
)
CONFIGS = st.builds(
    SchedulerConfig,
    max_model_len=st.just(400),
    num_kv_blocks=st.integers(26, 60),
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 120),
    async_scheduling=st.booleans(),
    watermark=st.sampled_from([0.0, 0.1]),
)
SIDES = st.lists(CONFIGS, min_size=1, max_size=3)
HOST = HostTimes(prepare_ns=100_000, whole_ns=900_000, pieces_ns=1_500_000, plain_ns=2_000_000)


def test_a_load_ends_beside_decodes_that_go_on() -> None:
    """The second is prefilled by 60; the decode at 65 starts its load, there by 70, and the one at 75 takes it in, until 85.

    Over a free link it is there at 60, beside the decode that starts its load, and taken in by the next.
    """
    requests = workload((0, 10, 100), (50, 10, 100))
    for transfer, first_ms in ((FIVE_MS, [25, 85]), (FREE, [20, 80])):
        assert [first for _, first, _ in times_ms(served(requests, transfer=transfer))] == first_ms


@settings(deadline=None, max_examples=60)
@given(
    spec=SPECS,
    sides=st.tuples(SIDES, SIDES),
    router=st.sampled_from([RoundRobin, LeastLoaded, PrefixAware, VllmBalancing]),
    transfer=st.sampled_from([FREE, FIVE_MS, KVTransfer(1, 1e9, 3 * MS)]),
    passes_first_token=st.booleans(),
    host=st.sampled_from([None, HOST]),
)
def test_each_request_is_served_once(  # noqa: PLR0913 - what a fleet is made of
    spec: str,
    sides: tuple[list[SchedulerConfig], list[SchedulerConfig]],
    router: type[RoundRobin],
    transfer: KVTransfer,
    *,
    passes_first_token: bool,
    host: HostTimes | None,
) -> None:
    """However short caches are: all requests end, with all their tokens, decoded after the prefill, at most so many at once."""
    requests = parse_workload(spec)
    first, second = ([Replica(ByTokens(), config, host) for config in configs] for configs in sides)
    logs = [StepLog() for _ in (*first, *second)]
    fleet = simulate_disaggregated(requests, first, second, transfer, router, passes_first_token=passes_first_token, steps=logs)
    assert [row.request_id for row in fleet.result.rows] == [request.request_id for request in requests.requests]
    assert fleet.result.token_gaps is not None
    num_tokens = sum(request.num_output_tokens for request in requests.requests)
    assert int(fleet.result.token_gaps.counts.sum()) == num_tokens - len(requests.requests)
    prefilled = {row.request_id: row for one in fleet.replicas[: len(first)] if one.result for row in one.result.rows}
    decoded = {row.request_id: row for one in fleet.replicas[len(first) :] if one.result for row in one.result.rows}
    assert set(prefilled) == {row.request_id for row in fleet.result.rows}
    for row in fleet.result.rows:
        before, after = prefilled[row.request_id], decoded.get(row.request_id)
        assert (after is None) == (passes_first_token and row.num_output_tokens == 1)
        assert row.arrival_s == before.arrival_s
        if after is not None:
            assert before.finish_s == after.arrival_s
            assert row.finish_s == after.finish_s
            assert row.first_token_s == (before if passes_first_token else after).first_token_s
    if requests.concurrency is not None:
        for row in fleet.result.rows:
            assert sum(r.arrival_s <= row.arrival_s < r.finish_s for r in fleet.result.rows) <= requests.concurrency
    assert sum(len(run.ends_ns) for log in logs for run in log.runs) == fleet.result.num_steps


@settings(deadline=None, max_examples=60)
@given(
    spec=SPECS,
    sides=st.tuples(SIDES, SIDES),
    router=st.sampled_from([RoundRobin, LeastLoaded, PrefixAware, VllmBalancing]),
    transfer=st.sampled_from([FREE, FIVE_MS, KVTransfer(1, 1e9, 3 * MS)]),
    passes_first_token=st.booleans(),
    host=st.sampled_from([None, HOST]),
)
def test_decodes_taken_together_take_the_same_time(  # noqa: PLR0913 - what a fleet is made of
    spec: str,
    sides: tuple[list[SchedulerConfig], list[SchedulerConfig]],
    router: type[RoundRobin],
    transfer: KVTransfer,
    *,
    passes_first_token: bool,
    host: HostTimes | None,
) -> None:
    """A fleet that takes every step alone finds the same times, the same gaps between tokens and the same places."""
    requests, schedule = parse_workload(spec), Scheduler.schedule
    first, second = ([Replica(ByTokens(), config, host) for config in configs] for configs in sides)

    def one_at_a_time(scheduler: Scheduler) -> ScheduledStep:
        return replace(schedule(scheduler), max_num_steps=1)

    def serve() -> FleetResult:
        return simulate_disaggregated(requests, first, second, transfer, router, passes_first_token=passes_first_token)

    together = serve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "schedule", one_at_a_time)
        alone = serve()
    assert together.result.rows == alone.result.rows
    assert together.placements == alone.placements
    assert together.result.summary()["itl_s"] == alone.result.summary()["itl_s"]
    assert together.result.num_steps == alone.result.num_steps


@settings(deadline=None, max_examples=50)
@given(spec=SPECS, config=CONFIGS)
def test_first_tokens_over_a_free_link_are_those_of_prefills_alone(spec: str, config: SchedulerConfig) -> None:
    """In an open loop, with room on both sides: they come as from an engine that generates one token of each request."""
    requests = replace(parse_workload(spec), concurrency=None)
    prompts = replace(requests, requests=tuple(replace(request, num_output_tokens=1) for request in requests.requests))
    config, ample = replace(config, num_kv_blocks=5001), replace(AMPLE, max_num_seqs=64, num_kv_blocks=5001)
    fleet = simulate_disaggregated(
        requests, [Replica(ByTokens(), config)], [Replica(ByTokens(), ample)], FREE, passes_first_token=True
    )
    alone = simulate(prompts, ByTokens(), config)
    assert [row.first_token_s for row in fleet.result.rows] == [row.first_token_s for row in alone.rows]


def test_what_cannot_be_moved_is_refused() -> None:
    """Blocks of several sizes, sliding windows, sides without replicas, and links that move nothing."""
    one, requests = Replica(Steps(), AMPLE), workload((0, 10, 2))
    with pytest.raises(InvalidInputError, match=r"KV blocks have \[16, 32\] tokens"):
        simulate_disaggregated(requests, [one], [Replica(Steps(), replace(AMPLE, block_size=32))], FREE)
    window = (KVCacheGroup(AttentionKind.SLIDING_WINDOW, window=64),)
    with pytest.raises(UnsupportedModelError, match="sliding_window are not moved"):
        simulate_disaggregated(requests, [one], [Replica(Steps(), replace(AMPLE, kv_cache_groups=window))], FREE)
    with pytest.raises(InvalidInputError, match="simulate_disaggregated: there is no replica"):
        simulate_disaggregated(requests, [one], [], FREE)
    with pytest.raises(InvalidInputError, match="bytes_per_s above 0"):
        KVTransfer(1, 0)
