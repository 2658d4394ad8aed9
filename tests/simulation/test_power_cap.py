"""What a power limit takes from prompts that follow each other: at full clocks for a burst, slower from then on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import dooly
from dooly.errors import InvalidInputError
from dooly.latency import HostTimes, LinearLatency
from dooly.power_cap import PowerCap
from dooly.simulation import Request, SchedulerConfig, Workload, simulate
from dooly.simulation import _simulator as simulator

if TYPE_CHECKING:
    from collections.abc import Sequence

MS = 1_000_000
CAP = PowerCap(np.array([0, *[8 * MS] * 100]), burst_ns=20 * MS, slowdown_permille=500)
"""Any step has products of 8 ms, of which 20 ms run at full clocks."""


class Capped(LinearLatency):
    """Steps of 10 ms on a device with a power limit."""

    power_cap = CAP


@pytest.fixture(autouse=True)
def _compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the smallest workloads compiled where no steps are kept."""
    monkeypatch.setattr(simulator, "_MANY", 1)


def _first_tokens_ms(arrivals_ms: Sequence[float], steps: object | None = None, **settings: object) -> list[float]:
    """Serve prompts of 100 tokens, one a step and one output token each; return when each got it."""
    requests = [Request(number, round(at * MS), 100, 1) for number, at in enumerate(arrivals_ms)]
    config = SchedulerConfig(max_model_len=128, max_num_batched_tokens=100, num_kv_blocks=1000, **settings)  # type: ignore[arg-type]
    result = simulate(Workload(tuple(requests), "prompts"), Capped(10 * MS), config, HostTimes(), steps=steps)  # type: ignore[arg-type]
    return [round(1e3 * request.first_token_s, 6) for request in result.rows]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("ahead", [True, False])
def test_prompts_without_a_pause_spend_the_burst(*, compiled: bool, ahead: bool) -> None:
    """Each step spends 8 ms and regains 2: from the fourth on nothing is left, and 6 of its 8 ms run half as long again."""
    steps = None if compiled else dooly.simulation.StepLog()
    found = _first_tokens_ms([0] * 5, steps, async_scheduling=ahead)
    assert found == [10, 20, 30, 43, 56]


@pytest.mark.parametrize("compiled", [True, False])
def test_a_pause_gives_the_burst_back(*, compiled: bool) -> None:
    """Behind five prompts and a pause of 20 ms three run at full clocks again."""
    steps = None if compiled else dooly.simulation.StepLog()
    found = _first_tokens_ms([0] * 5 + [76] * 4, steps)
    assert found[5:] == [86, 96, 106, 119]


def test_a_step_longer_than_the_burst_is_slowed_within() -> None:
    """Of 50 ms of products 20 run at full clocks; the rest takes half as long again."""
    cap = PowerCap(np.array([0, 50 * MS]), 20 * MS, 500)
    assert cap.capped_ns(0, 0, 60 * MS, 1) == (75 * MS, 20 * MS)
    assert cap.capped_ns(0, 0, 60 * MS, 7) == (75 * MS, 20 * MS), "beyond the table its last entry counts"
    assert cap.capped_ns(20 * MS, 5 * MS, 60 * MS, 0) == (60 * MS, 0), "without products all of it is a rest"


def test_negative_times_are_refused() -> None:
    """A burst is no less than nothing."""
    with pytest.raises(InvalidInputError, match="at least 0"):
        PowerCap(np.zeros(1, np.int64), -1, 10)


def test_an_h200_slows_down_under_long_prompts_and_not_under_decodes() -> None:
    """Products of prompts draw on the limit, by its measured facts; where nobody measured it, nothing does."""
    model = dooly.find_model("llama-3.1-8b")
    serving = dooly.ServingConfig(max_model_len=4096, max_num_batched_tokens=2048)
    cap = dooly.load_latency_model(model=model, hardware="h200", serving=serving).power_cap
    assert cap is not None
    assert cap.products_ns[64] == 0
    step_ns = dooly.load_latency_model(model=model, hardware="h200", serving=serving).step_ns(dooly.Batch((2048,), (0,)))
    assert 0.6 * step_ns < cap.products_ns[2048] < step_ns
    assert dooly.load_latency_model(model=model, hardware="rtxpro6000", serving=serving).power_cap is None
