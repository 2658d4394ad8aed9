"""What a power limit takes from steps that follow each other: at full clocks for a burst, slower from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dooly
from dooly.errors import InvalidInputError
from dooly.latency import HostTimes, LinearLatency
from dooly.power_cap import PacedDevice, PowerCap
from dooly.predict import with_limits
from dooly.simulation import LeastLoaded, Replica, Request, RoundRobin, SchedulerConfig, Workload, simulate, simulate_fleet
from dooly.simulation import _simulator as simulator
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

MS = 1_000_000
CAP = PowerCap(np.array([0, *[0] * 49, *[8 * MS] * 51]), burst_ns=20 * MS, slowdown_permille=500)
"""Steps of 50 tokens and more have products of 8 ms, of which 20 ms run at full clocks."""


class Capped(LinearLatency):
    """Steps of 10 ms on a device with a power limit."""

    power_cap = CAP


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Serve the smallest workloads compiled where no steps are kept; return what was."""
    served: list[object] = []
    compiled_run = simulator.serve_compiled

    def counted(*given: Any) -> Any:  # noqa: ANN401 -- passed through
        served.append(compiled_run(*given))
        return served[-1]

    monkeypatch.setattr(simulator, "_MANY", 1)
    monkeypatch.setattr(simulator, "serve_compiled", counted)
    return served


def _served(
    arrivals_ms: Sequence[float],
    steps: dooly.simulation.StepLog | None = None,
    **settings: Any,  # noqa: ANN401 -- as SchedulerConfig
) -> tuple[list[float], float]:
    """Serve prompts of 100 tokens, one a step and one output token each; return when each got it, and what the limit added."""
    requests = [Request(number, round(at * MS), 100, 1) for number, at in enumerate(arrivals_ms)]
    config = SchedulerConfig(max_model_len=128, max_num_batched_tokens=100, num_kv_blocks=1000, **settings)
    result = simulate(Workload(tuple(requests), "prompts"), Capped(10 * MS), config, HostTimes(), steps=steps)
    return [round(1e3 * row.first_token_s, 6) for row in result.rows], round(1e3 * result.power_limit_s, 6)


@pytest.mark.parametrize("in_python", [False, True])
@pytest.mark.parametrize("ahead", [True, False])
def test_prompts_without_a_pause_spend_the_burst(*, in_python: bool, ahead: bool, compiled: list[object]) -> None:
    """Each step spends 8 ms and regains 2: from the fourth on nothing is left, and 6 of its 8 ms run half as long again."""
    steps = dooly.simulation.StepLog() if in_python else None
    assert _served([0] * 5, steps, async_scheduling=ahead) == ([10, 20, 30, 43, 56], 6)
    assert [served is not None for served in compiled] == [True] * (not in_python)


@pytest.mark.parametrize("in_python", [False, True])
def test_a_pause_gives_the_burst_back(*, in_python: bool) -> None:
    """Behind five prompts and a pause of 20 ms three run at full clocks again."""
    steps = dooly.simulation.StepLog() if in_python else None
    first_tokens_ms, added_ms = _served([0] * 5 + [76] * 4, steps)
    assert (first_tokens_ms[5:], added_ms) == ([86, 96, 106, 119], 9)


@pytest.mark.parametrize("in_python", [False, True])
@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(("num_requests", "ends_ms"), [(49, 70), (50, 30 + 4 * 13)])
def test_decodes_draw_on_it_as_their_tokens_do(*, num_requests: int, ends_ms: int, ahead: bool, in_python: bool) -> None:
    """Seven steps of few tokens take 10 ms each; of many the first three do, and 13 ms from then on."""
    requests = tuple(Request(number, 0, 1, 7) for number in range(num_requests))
    config = SchedulerConfig(max_model_len=128, num_kv_blocks=1000, async_scheduling=ahead)
    steps = dooly.simulation.StepLog() if in_python else None
    result = simulate(Workload(requests, "decodes"), Capped(10 * MS), config, HostTimes(), steps=steps)
    assert {round(1e3 * row.finish_s, 6) for row in result.rows} == {ends_ms}


def test_a_draft_cut_by_the_budget_changes_no_pace() -> None:
    """Steps that verify drafts draw by their tokens, whether or not one of the drafts had no room."""
    requests = tuple(Request(number, 0, 1, 20) for number in range(20))
    drafts = SpeculativeConfig("ngram", 3, (0.0, 0.0, 0.0))
    found = []
    for budget in (80, 79):
        config = SchedulerConfig(max_model_len=128, max_num_batched_tokens=budget, num_kv_blocks=1000, speculative=drafts)
        found.append(
            max(row.finish_s for row in simulate(Workload(requests, "drafts"), Capped(10 * MS), config, HostTimes()).rows)
        )
    assert found[0] == found[1] > 0.2


def test_a_step_longer_than_the_burst_is_slowed_within() -> None:
    """Of 50 ms of products 20 run at full clocks; the rest takes half as long again."""
    cap = PowerCap(np.array([0, 50 * MS]), 20 * MS, 500)
    assert cap.capped_ns(0, 0, 60 * MS, 1) == (75 * MS, 20 * MS)
    assert cap.capped_ns(0, 0, 60 * MS, 7) == (75 * MS, 20 * MS), "beyond the table its last entry counts"
    assert cap.capped_ns(20 * MS, 5 * MS, 60 * MS, 0) == (60 * MS, 0), "without products all of it is a rest"


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(1, 120), st.integers(0, 2)), min_size=1, max_size=12),
    st.integers(0, 60),
    st.integers(0, 900),
)
def test_no_history_adds_more_than_the_most(steps: list[tuple[int, int, int]], burst_ms: int, slower: int) -> None:
    """Each is between its price and that with the most that is added, which many of its like behind each other come to."""
    cap = PowerCap(np.array([0, 50 * MS, 90 * MS]), burst_ms * MS, slower)
    device, now_ns = PacedDevice(cap), 0
    for pause_ms, step_ms, num_tokens in steps:
        step_ns = step_ms * MS
        (most_ns,) = step_ns + cap.most_added_ns(np.array([step_ns]), np.array([num_tokens]))
        assert most_ns == cap.capped_ns(cap.burst_ns, 0, step_ns, num_tokens)[0]
        now_ns += pause_ms * MS
        took_ns = device.run_ns(now_ns, step_ns, num_tokens)
        assert step_ns <= took_ns <= most_ns
        now_ns += took_ns
    for _ in range(70):
        took_ns = device.run_ns(now_ns, step_ns, num_tokens)
        now_ns += took_ns
    assert took_ns == most_ns


def test_devices_have_bursts_of_their_own() -> None:
    """Two that take turns spend half as much each; one without a known limit is never slowed."""
    one, other, free = PacedDevice(CAP), PacedDevice(CAP), PacedDevice(None)
    assert [(one, other)[turn % 2].run_ns(10 * turn * MS, 10 * MS, 100) for turn in range(8)] == [10 * MS] * 8
    assert [free.run_ns(10 * turn * MS, 10 * MS, 100) for turn in range(8)] == [10 * MS] * 8


def test_a_step_before_the_last_has_run_spends_no_more_than_one_behind_it() -> None:
    """Real steps each 5 ms after the one before, predicted to take 10, spend 8 ms and regain 2, as those each 10 ms do."""
    for apart_ms in (5, 10):
        device = PacedDevice(CAP)
        assert [device.run_ns(turn * apart_ms * MS, 10 * MS, 100) for turn in range(5)] == [10 * MS] * 3 + [13 * MS] * 2


@pytest.mark.parametrize("order", [(Capped, LinearLatency), (LinearLatency, Capped)])
def test_engines_in_lockstep_are_slowed_by_their_own_limits(order: tuple[type[LinearLatency], ...]) -> None:
    """All wait for the rank whose device is slowed, whichever it is."""
    requests = tuple(Request(number, 0, 100, 1) for number in range(10))
    config = SchedulerConfig(max_model_len=128, max_num_batched_tokens=100, num_kv_blocks=1000)
    replicas = [Replica(kind(10 * MS), config, HostTimes()) for kind in order]
    fleet = simulate_fleet(Workload(requests, "prompts"), replicas, RoundRobin, in_step=True)
    assert round(1e3 * max(row.finish_s for row in fleet.result.rows), 6) == 56
    assert round(1e3 * fleet.result.power_limit_s, 6) == 6


@pytest.mark.parametrize(("router", "in_step"), [(RoundRobin, False), (LeastLoaded, False), (RoundRobin, True)])
def test_a_fleets_limits_add_up(router: type[RoundRobin | LeastLoaded], *, in_step: bool) -> None:
    """Two devices of five prompts each are slowed by 6 ms each, whether they step together or apart."""
    requests = tuple(Request(number, 0, 100, 1) for number in range(10))
    config = SchedulerConfig(max_model_len=128, max_num_batched_tokens=100, num_kv_blocks=1000)
    fleet = simulate_fleet(Workload(requests, "prompts"), [Replica(Capped(10 * MS), config)] * 2, router, in_step=in_step)
    assert round(1e3 * fleet.result.power_limit_s, 6) == 12


@pytest.mark.parametrize("given", [(np.zeros(1, np.int64), -1, 10), (np.zeros(0, np.int64), 1, 10), (np.array([-1]), 1, 10)])
def test_what_is_no_limit_is_refused(given: tuple[Any, ...]) -> None:
    """A burst is no less than nothing, and a table holds one time or more."""
    with pytest.raises(InvalidInputError, match="at least 0"):
        PowerCap(*given)


def test_an_h200_slows_down_by_arithmetic_alone() -> None:
    """Products of prompts draw on the limit, by its measured facts; where nobody measured it, nothing does."""
    model = dooly.find_model("llama-3.1-8b")
    serving = dooly.ServingConfig(max_model_len=4096, max_num_batched_tokens=2048)
    latency = dooly.load_latency_model(model=model, hardware="h200", serving=serving)
    assert latency.power_cap is not None
    assert latency.power_cap.products_of(64) == 0
    assert 0.6 * latency.step_ns(dooly.Batch((2048,), (0,))) < latency.power_cap.products_of(2048)
    assert dooly.load_latency_model(model=model, hardware="rtxpro6000", serving=serving).power_cap is None


def test_a_step_says_what_it_takes_once_the_limit_slows_it() -> None:
    """Of prompts up to 18 % more, of few decodes nothing; a device of no known limit says nothing, and limits may change."""
    model = dooly.find_model("llama-3.1-8b")
    serving = dooly.ServingConfig(max_model_len=4096, max_num_batched_tokens=2048)
    latency = dooly.load_latency_model(model=model, hardware="h200", serving=serving)
    prompts = dooly.Batch((2048,), (0,)), dooly.Batch((1024, 1000), (0, 2000)), dooly.Batch((1,) * 8, (500,) * 8)
    for same in (latency, with_limits(latency, dooly.default_serving(model, "h200", max_model_len=4096))):
        assert same.power_cap is not None
        for batch, step in zip(prompts, map(same.steps(prompts).__getitem__, range(3)), strict=True):
            most_ns, _ = same.power_cap.capped_ns(same.power_cap.burst_ns, 0, same.step_ns(batch), batch.num_tokens)
            assert step.sustained_s == pytest.approx(most_ns / 1e9, abs=2e-9)
        assert [0.05 < step.sustained_s / step.seconds - 1 < 0.18 for step in map(same.step, prompts)] == [True, True, False]
        assert (step := same.step(prompts[2])).sustained_s == step.seconds
    runs = latency.decode_run([100] * 4, num_steps=3)
    assert runs.sustained_s is not None
    assert runs.sustained_s.tolist() == runs.seconds.tolist()
    unknown = dooly.load_latency_model(model=model, hardware="rtxpro6000", serving=serving)
    assert unknown.step(prompts[0]).sustained_s is None


@pytest.mark.parametrize(("start_ns", "step_ns"), [(0, 0.0446), (1e9, 5), (0, "5")])
def test_a_device_is_told_whole_nanoseconds(start_ns: Any, step_ns: Any) -> None:  # noqa: ANN401 - what is refused
    """Seconds in their place are refused: by them the limit would never act."""
    with pytest.raises(InvalidInputError, match=r"PacedDevice\.run_ns: .* must be whole nanoseconds"):
        PacedDevice(None).run_ns(start_ns, step_ns, 2048)
    assert PacedDevice(None).run_ns(0, np.int64(7), 2048) == 7
