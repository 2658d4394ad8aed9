"""Engines that step together: timelines worked out by hand, and what must hold for every workload."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.errors import InvalidInputError
from dooly.latency import HostTimes, LatencyBackend
from dooly.power_cap import PowerCap
from dooly.simulation import (
    FleetResult,
    LeastLoaded,
    Replica,
    Request,
    RoundRobin,
    SchedulerConfig,
    StepLog,
    VllmBalancing,
    Workload,
    parse_workload,
    simulate,
    simulate_fleet,
)

if TYPE_CHECKING:
    from dooly.batch import Batch

MS = 1_000_000
AMPLE = SchedulerConfig(max_model_len=1000, num_kv_blocks=1001, max_num_seqs=4, max_num_batched_tokens=100)


class Steps(LatencyBackend):
    """Takes so many milliseconds for every step."""

    def __init__(self, ms: int = 10) -> None:
        self.ms = ms

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        assert batch.num_reqs
        return self.ms * MS


class ByTokens(LatencyBackend):
    """Prices each step by its tokens and what they attend to."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return MS + 100_000 * batch.num_tokens + 100 * sum(batch.num_computed_tokens)


class Limited(ByTokens):
    """The same on a device whose power limit slows products of ten tokens and more after 5 ms of them."""

    power_cap = PowerCap(np.where(np.arange(121) < 10, 0, 90_000 * np.arange(121)), 5 * MS, 400)


def workload(*rows: tuple[float, int, int]) -> Workload:
    """Make a workload of (arrival in ms, prompt tokens, output tokens)."""
    return Workload(tuple(Request(i, round(ms * MS), *sizes) for i, (ms, *sizes) in enumerate(rows)), "test")


def times_ms(fleet: FleetResult) -> list[tuple[int, float, float, float]]:
    """Return (rank, scheduled, first token, finish) of each row, times in ms."""
    return [
        (place, *(round(1e3 * s, 6) for s in (row.scheduled_s, row.first_token_s, row.finish_s)))
        for place, row in zip(fleet.placements["replica"], fleet.result.rows, strict=True)
    ]


def test_a_step_takes_what_the_slowest_rank_does() -> None:
    """Ranks of 10 and 30 ms: both requests get their two tokens at 30 and 60, in two steps."""
    fleet = simulate_fleet(workload((0, 5, 2), (0, 5, 2)), [Replica(Steps(ms), AMPLE) for ms in (10, 30)], in_step=True)
    assert times_ms(fleet) == [(0, 0, 30, 60), (1, 0, 30, 60)]
    assert fleet.result.num_steps == 2


def test_a_rank_without_work_is_no_brake() -> None:
    """The slow rank ends at 30; from there on the other goes at its own pace, beside dummy steps of one token."""
    fleet = simulate_fleet(workload((0, 5, 4), (0, 5, 1)), [Replica(Steps(ms), AMPLE) for ms in (10, 30)], in_step=True)
    assert times_ms(fleet) == [(0, 0, 30, 60), (1, 0, 30, 30)]


def test_an_idle_rank_waits_for_the_step_of_the_others() -> None:
    """A request that arrives at 3 ms begins at 10, though nothing runs at its rank; alone it would begin at once."""
    requests, ranks = workload((0, 5, 3), (3, 5, 1)), [Replica(Steps(), AMPLE)] * 2
    assert times_ms(simulate_fleet(requests, ranks, in_step=True)) == [(0, 0, 10, 30), (1, 10, 20, 20)]
    assert times_ms(simulate_fleet(requests, ranks)) == [(0, 0, 10, 30), (1, 3, 13, 13)]


def test_a_prompt_holds_up_the_decodes_of_other_ranks() -> None:
    """Decodes of 1.1 ms and a little; the step with the prompt of 90 tokens takes 10 ms at both ranks."""
    fleet = simulate_fleet(workload((0, 10, 4), (1, 90, 1)), [Replica(ByTokens(), AMPLE)] * 2, in_step=True)
    decode_ms = [1.1 + 0.0001 * context for context in (10, 11, 12)]
    assert times_ms(fleet) == [(0, 0, 2, round(2 + 10 + sum(decode_ms[1:]), 6)), (1, 2, 12, 12)]


def test_steps_that_are_launched_ahead_are_joint_too() -> None:
    """Behind the first step of 10 ms, the second is scheduled at 0, and learns of the request of 3 ms only for the third."""
    ahead = replace(AMPLE, async_scheduling=True)
    fleet = simulate_fleet(workload((0, 5, 3), (3, 5, 1)), [Replica(Steps(), ahead)] * 2, in_step=True)
    assert times_ms(fleet) == [(0, 0, 10, 30), (1, 10, 30, 30)]


SPECS = st.builds(
    "{}requests={},prompt=1-{},output=1-{},seed={}{}".format,
    st.sampled_from([*(f"poisson:rate={rate}," for rate in (20, 300, "inf")), "closed:concurrency=1,", "closed:concurrency=7,"]),
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
)
HOST = HostTimes(prepare_ns=100_000, whole_ns=900_000, pieces_ns=1_500_000, plain_ns=2_000_000)


@settings(deadline=None, max_examples=40)
@given(
    spec=SPECS,
    config=CONFIGS,
    ahead=st.booleans(),
    host=st.sampled_from([None, HOST]),
    latency=st.sampled_from([ByTokens(), Limited()]),
)
def test_one_rank_is_what_simulate_says(
    spec: str, config: SchedulerConfig, *, ahead: bool, host: HostTimes | None, latency: ByTokens
) -> None:
    """A rank alone steps as an engine does, under its device's power limit too."""
    requests, config = parse_workload(spec), replace(config, async_scheduling=ahead)
    fleet = simulate_fleet(requests, [Replica(latency, config, host)], in_step=True)
    alone = simulate(requests, latency, config, host)
    assert (fleet.result.rows, fleet.result.power_limit_s) == (alone.rows, alone.power_limit_s)
    assert (fleet.result.num_steps, fleet.result.num_preemptions) == (alone.num_steps, alone.num_preemptions)
    assert fleet.result.summary()["itl_s"] == alone.summary()["itl_s"]


@settings(deadline=None, max_examples=60)
@given(
    spec=SPECS,
    configs=st.lists(CONFIGS, min_size=1, max_size=4),
    router=st.sampled_from([RoundRobin, LeastLoaded, VllmBalancing]),
    ahead=st.booleans(),
)
def test_each_request_is_served_once(spec: str, configs: list[SchedulerConfig], router: type[RoundRobin], *, ahead: bool) -> None:
    """All requests end with all their tokens; steps of all ranks begin and end together, as long as the slowest would take."""
    requests = parse_workload(spec)
    ranks = [Replica(ByTokens(), replace(config, async_scheduling=ahead)) for config in configs]
    logs = [StepLog() for _ in ranks]
    fleet = simulate_fleet(requests, ranks, router, in_step=True, steps=logs)
    assert [row.request_id for row in fleet.result.rows] == [request.request_id for request in requests.requests]
    num_tokens = sum(request.num_output_tokens for request in requests.requests)
    assert fleet.result.token_gaps is not None
    assert int(fleet.result.token_gaps.counts.sum()) == num_tokens - len(requests.requests)
    took: dict[tuple[int, int], int] = {}
    for run in (run for log in logs for run in log.runs):
        for step, span in enumerate(zip(run.starts_ns.tolist(), run.ends_ns.tolist(), strict=True)):
            took[span] = max(took.get(span, 0), ByTokens().step_ns(run.batch(step)))
    assert len(took) == fleet.result.num_steps
    assert all(end - start == ns for (start, end), ns in took.items())
    spans = sorted(took)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    if requests.concurrency is not None:
        for row in fleet.result.rows:
            assert sum(r.arrival_s <= row.arrival_s < r.finish_s for r in fleet.result.rows) <= requests.concurrency


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_slowest_host_sets_the_pace(order: tuple[int, int]) -> None:
    """Devices that take 1 ms beside hosts that launch decodes in 2 and 5 ms: whichever rank comes first, 5 ms a step."""
    hosts = [HostTimes(0, ms * MS, ms * MS, ms * MS) for ms in (2, 5)]
    ranks = [Replica(Steps(1), AMPLE, hosts[place]) for place in order]
    fleet = simulate_fleet(workload((0, 5, 2), (0, 5, 2)), ranks, in_step=True)
    assert times_ms(fleet) == [(0, 0, 5, 10), (1, 0, 5, 10)]
    assert fleet.result.host_wait_s == pytest.approx(2 * 0.004)


def test_a_step_begins_when_the_slowest_host_has_prepared_it() -> None:
    """Hosts of which one prepares a step for 3 ms, behind which all devices take 10."""
    ranks = [Replica(Steps(), AMPLE, HostTimes(ms * MS, 4 * MS, 4 * MS, 4 * MS)) for ms in (1, 3)]
    fleet = simulate_fleet(workload((0, 5, 2), (0, 5, 2)), ranks, in_step=True)
    assert times_ms(fleet) == [(0, 0, 13, 26), (1, 0, 13, 26)]


def test_ranks_that_schedule_otherwise_cannot_be_in_step() -> None:
    """One ahead and one not."""
    ranks = [Replica(Steps(), replace(AMPLE, async_scheduling=ahead)) for ahead in (False, True)]
    with pytest.raises(InvalidInputError, match="replicas differ in async_scheduling"):
        simulate_fleet(workload((0, 5, 2)), ranks, in_step=True)


def test_ranks_count_steps_together() -> None:
    """Where one step in three takes prompts beside decodes, it is the same step at all ranks, whenever they began."""
    requests = workload((0, 5, 10), (10, 5, 10), (20, 5, 1), (20, 5, 1))
    ranks = [Replica(Steps(), replace(AMPLE, prefill_schedule_interval=3))] * 2
    times = times_ms(simulate_fleet(requests, ranks, in_step=True))
    assert [(scheduled, first_token) for _, scheduled, first_token, _ in times] == [(0, 10), (10, 20), (30, 40), (30, 40)]
