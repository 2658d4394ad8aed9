"""An engine that schedules a step while another runs: timelines worked out by hand, and what must hold for every workload."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.errors import InvalidInputError
from dooly.latency import HostTimes, LatencyBackend
from dooly.simulation import Request, SchedulerConfig, Workload, simulate
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from dooly.batch import Batch
    from dooly.simulation._steps import ScheduledStep

MS = 1_000_000
AHEAD = SchedulerConfig(max_model_len=1000, num_kv_blocks=1001, max_num_seqs=4, max_num_batched_tokens=100, async_scheduling=True)


class ConstantLatency(LatencyBackend):
    """Takes 10 ms for every step, and 1 us a position that decodes read, so that no two steps of a run are alike."""

    def __init__(self, per_position_ns: int = 0) -> None:
        self.per_position_ns = per_position_ns

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return 10 * MS + self.per_position_ns * sum(batch.num_computed_tokens)


def workload(*rows: tuple[float, int, int]) -> Workload:
    """Make a workload of (arrival in ms, prompt tokens, output tokens)."""
    return Workload(tuple(Request(i, round(ms * MS), prompt, output) for i, (ms, prompt, output) in enumerate(rows)), "test")


def times_ms(requests: Workload, host: HostTimes | None = None) -> list[tuple[float, float, float]]:
    """Return (scheduled, first token, finish) of each request in ms."""
    rows = simulate(requests, ConstantLatency(), AHEAD, host).rows
    return [(round(r.scheduled_s * 1e3, 6), round(r.first_token_s * 1e3, 6), round(r.finish_s * 1e3, 6)) for r in rows]


def test_a_request_alone_waits_for_nothing() -> None:
    """Its tokens come out a step after another, as in a synchronous engine."""
    assert times_ms(workload((5, 10, 4))) == [(5, 15, 45)]


def test_an_arrival_waits_for_the_step_that_is_scheduled_already() -> None:
    """One arrives while the second step runs and the third is scheduled: it is in the fourth, from 30 to 40 ms."""
    assert times_ms(workload((0, 10, 10), (15, 10, 1))) == [(0, 10, 100), (20, 40, 40)]


def test_a_slot_is_free_only_when_the_last_token_is_out() -> None:
    """Four requests of one token fill the slots; the fifth is scheduled when they are out, and the engine has idled for it."""
    found = times_ms(workload(*[(0, 10, 1)] * 5))
    assert found[:4] == [(0, 10, 10)] * 4
    assert found[4] == (10, 20, 20)


def test_the_host_shows_where_the_device_is_faster() -> None:
    """Launching a prompt takes 25 ms, and its token is known when the next step is launched too; decodes hide their 4 ms."""
    host = HostTimes(prepare_ns=1 * MS, whole_ns=4 * MS, pieces_ns=25 * MS, plain_ns=99 * MS, max_captured_tokens=50)
    (one,) = times_ms(workload((0, 10, 3)), host)
    assert one == (0, 29, 46)
    # The prompt's 25 ms hide 10 of the device's; the first decode is launched by 29 ms, and runs from 26 to 36 ms.
    assert simulate(workload((0, 10, 3)), ConstantLatency(), AHEAD, host).host_wait_s == pytest.approx(0.016)
    (large,) = times_ms(workload((0, 60, 1)), host)
    assert large == (0, 99, 99)


def test_the_host_shows_in_a_synchronous_engine_at_every_step() -> None:
    """Preparing 1 ms stands before every step of 10 ms, and a prompt's launch of 25 ms hides the device."""
    host = HostTimes(prepare_ns=1 * MS, whole_ns=4 * MS, pieces_ns=25 * MS, plain_ns=99 * MS, max_captured_tokens=50)
    (row,) = simulate(workload((0, 10, 3)), ConstantLatency(), replace(AHEAD, async_scheduling=False), host).rows
    assert (round(row.first_token_s * 1e3, 6), round(row.finish_s * 1e3, 6)) == (25, 47)
    decoding = simulate(workload((0, 10, 3)), ConstantLatency(), replace(AHEAD, async_scheduling=False), host)
    assert decoding.host_wait_s == pytest.approx(0.015 + 2 * 0.001)


def test_launches_grow_with_layers_but_for_decodes() -> None:
    """Twice the layers are twice the pieces and kernels to launch; one graph stays one, and no launch is below its start."""
    host = HostTimes(prepare_ns=2, whole_ns=3, pieces_ns=10, plain_ns=20, max_captured_tokens=50)
    assert host.of_layers(2) == replace(host, pieces_ns=20, plain_ns=40)
    assert host.of_layers(0.1) == replace(host, pieces_ns=2, plain_ns=2)
    assert [host.launch_ns(n, only_decodes=d) for n, d in ((50, True), (50, False), (51, True), (51, False))] == [3, 10, 20, 20]


@pytest.mark.parametrize("times", [{"prepare_ns": -1}, {"prepare_ns": 1}, {"prepare_ns": 2, "whole_ns": 1, "pieces_ns": 9}])
def test_launches_that_end_before_they_begin_are_refused(times: dict[str, int]) -> None:
    """The message has both times."""
    with pytest.raises(InvalidInputError, match=r"HostTimes: preparing a step takes .* ns, launching it"):
        HostTimes(**times)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=25),
    st.integers(20, 80),
    st.sampled_from([HostTimes(), HostTimes(MS, 2 * MS, 9 * MS, 30 * MS, 64)]),
    st.sampled_from([1, 3]),
)
def test_decodes_taken_together_take_the_same_time(
    rows: list[tuple[int, int, int]], blocks: int, host: HostTimes, interval: int
) -> None:
    """A simulation that takes every step alone finds the same times and the same gaps between tokens."""
    requests = workload(*sorted(rows))
    config = replace(AHEAD, num_kv_blocks=blocks, prefill_schedule_interval=interval)
    schedule = Scheduler.schedule

    def one_at_a_time(scheduler: Scheduler) -> ScheduledStep:
        return replace(schedule(scheduler), max_num_steps=1)

    together = simulate(requests, ConstantLatency(1000), config, host)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "schedule", one_at_a_time)
        alone = simulate(requests, ConstantLatency(1000), config, host)
    assert together.rows == alone.rows
    assert (together.num_steps, together.num_preemptions) == (alone.num_steps, alone.num_preemptions)
    assert together.summary()["itl_s"] == alone.summary()["itl_s"]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 150), st.integers(1, 40)), min_size=1, max_size=25))
def test_first_tokens_come_no_earlier_than_a_step_after_arrival(rows: list[tuple[int, int, int]]) -> None:
    """Every request gets all its tokens, each a step apart at least."""
    for row in simulate(workload(*sorted(rows)), ConstantLatency(), AHEAD).rows:
        assert row.first_token_s >= row.arrival_s + 0.01 - 1e-12
        assert row.finish_s >= row.first_token_s + 0.01 * (row.num_output_tokens - 1) - 1e-9
