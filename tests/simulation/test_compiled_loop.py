"""The compiled loop against the one in Python: the same times, steps, preemptions, waits and gaps, to the nanosecond."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.engines import find_model
from dooly.errors import OutOfDomainError, WorkloadError
from dooly.latency import HostTimes, LatencyBackend, LinearLatency, SheetBackend
from dooly.power_cap import PowerCap
from dooly.predict import default_serving, load_latency_model
from dooly.simulation import (
    Request,
    SchedulerConfig,
    SimulationResult,
    StepLog,
    Workload,
    parse_workload,
    scheduler_config,
    simulate,
)
from dooly.simulation import _compiled_run as compiled_run
from dooly.simulation import _compiled_state as compiled_state
from dooly.simulation import _simulator as simulator
from dooly.simulation import _token_gaps as token_gaps

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from dooly.batch import Batch
    from dooly.prices import PriceSheet

MS = 1_000_000


class Formula(LinearLatency):
    """A formula for a device whose power limit is told."""

    power_cap: PowerCap | None = None


FORMULA = Formula(
    MS, per_token_ns=10_000.3, per_request_ns=777, per_new_request_ns=1_000, per_cached_token_ns=100, per_query_key_pair_ns=0.25
)
HOSTS = (HostTimes(), HostTimes(MS, 2 * MS, 9 * MS, 30 * MS, 64))


class InPython(LatencyBackend):
    """Hides a backend's sheet."""

    power_cap: PowerCap | None

    def __init__(self, latency: LatencyBackend) -> None:
        self._latency = latency
        self.power_cap = latency.power_cap

    def step_ns(self, batch: Batch) -> int:
        """Ask the backend."""
        return self._latency.step_ns(batch)

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Ask the backend."""
        return self._latency.decode_run_ns(num_computed_tokens, num_steps)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Serve the smallest workloads compiled as well; return a list that grows by each that was."""
    calls: list[int] = []

    def counted(*args: Any) -> Any:  # noqa: ANN401 -- passed through
        served = compiled_run.serve_compiled(*args)
        if served is not None:
            calls.append(served.num_steps)
        return served

    monkeypatch.setattr(simulator, "_MANY", 1)
    monkeypatch.setattr(simulator, "serve_compiled", counted)
    return calls


def facts(result: SimulationResult) -> tuple[Any, ...]:
    """Return all that a simulation found but how long it took itself."""
    gaps = result.token_gaps
    assert gaps is not None
    found = list(zip(gaps.gaps_ns.tolist(), gaps.counts.tolist(), strict=True))
    return result.rows, result.num_steps, result.num_preemptions, result.host_wait_s, result.power_limit_s, found


def both(workload: Workload, latency: SheetBackend, config: SchedulerConfig, host: HostTimes | None = None) -> SimulationResult:
    """Serve a workload both ways, and return what both found."""
    found = simulate(workload, latency, config, host)
    assert facts(found) == facts(simulate(workload, InPython(latency), config, host))
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, SchedulerConfig]:
    """Draw a workload and settings under which each request can finish."""
    row = st.tuples(st.integers(0, 60), st.integers(1, 90), st.integers(1, 60))
    rows = sorted(draw(st.lists(row, min_size=1, max_size=25)))
    block_size = draw(st.sampled_from([1, 4, 16]))
    fewest = max(math.ceil((prompt + output - 1) / block_size) for _, prompt, output in rows)
    max_num_seqs = draw(st.integers(1, 12))
    chunked = draw(st.booleans())
    config = SchedulerConfig(
        max_model_len=150,
        num_kv_blocks=1 + max(1, fewest) + draw(st.integers(0, 25)),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=(max_num_seqs if chunked else 150) + draw(st.integers(0, 80)),
        block_size=block_size,
        enable_chunked_prefill=chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 5])),
        scheduler_reserve_full_isl=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.2])),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
    )
    concurrency = draw(st.sampled_from([None, None, 1, 3, 20]))
    scale = 0 if concurrency else MS
    requests = tuple(Request(i, arrival * scale, prompt, output) for i, (arrival, prompt, output) in enumerate(rows))
    return Workload(requests, "drawn", concurrency), config


@st.composite
def limits(draw: st.DrawFn) -> PowerCap | None:
    """Draw a power limit on which steps of some tokens and more draw, or none."""
    if draw(st.booleans()):
        return None
    products_ns = np.where(np.arange(200) >= draw(st.integers(1, 40)), draw(st.integers(0, 20)) * MS, 0)
    return PowerCap(products_ns, draw(st.integers(0, 60)) * MS, draw(st.integers(0, 900)))


@given(cases(), st.sampled_from(HOSTS), limits())
@settings(max_examples=300, deadline=None)
def test_both_loops_find_the_same(case: tuple[Workload, SchedulerConfig], host: HostTimes, cap: PowerCap | None) -> None:
    """Whatever the workload, the settings, the host and the device's power limit."""
    latency = copy(FORMULA)
    latency.power_cap = cap
    both(case[0], latency, case[1], host)


@pytest.mark.parametrize("ahead", [False, True])
def test_both_loops_schedule_the_oracles_cases_alike(ahead: bool, oracle: Any, compiled: list[int]) -> None:  # noqa: ANN401, FBT001
    """Those in which the loop in Python is held against vLLM's scheduler, a fifth of which and more preempt."""
    num_preempting = 0
    for seed in range(120):
        case = oracle.random_case(seed, ahead=ahead)
        requests = tuple(replace(request, arrival_ns=request.arrival_ns * 5 * MS) for request in case.requests)
        num_preempting += both(Workload(requests, f"seed {seed}"), FORMULA, case.config, HOSTS[seed % 2]).num_preemptions > 0
    assert num_preempting > 20
    assert len(compiled) == 120


@pytest.mark.parametrize(("hardware", "changes"), [("h200", {}), ("h200", {"num_kv_blocks": 4000}), ("rtxpro6000", {})])
def test_a_latency_models_prices_are_the_same(hardware: str, changes: dict[str, Any], compiled: list[int]) -> None:
    """Its sheet's, and where its seconds are from; requests that are all there at once leave nothing priced in vain."""
    source = find_model("llama-3.1-8b")
    serving = default_serving(source, hardware, max_model_len=4096)
    latency = load_latency_model(None, source, serving, hardware=hardware)
    config = replace(scheduler_config(serving, latency), **changes)
    workload = parse_workload("poisson:rate=inf,requests=300,prompt=20-2000,output=1-300,seed=2")
    served = simulate(workload, latency, config)
    priced_ns = dict(latency.priced_ns)
    latency.priced_ns = dict.fromkeys(latency.priced_ns, 0.0)
    assert facts(served) == facts(simulate(workload, InPython(latency), config, latency.host))
    assert priced_ns == pytest.approx(latency.priced_ns)
    assert len(compiled) == 1


def test_gaps_that_fill_their_room_are_counted_in_between() -> None:
    """Steps that are all unlike fill it; runs are cut there, and nothing is lost."""
    config = SchedulerConfig(4000, 300)
    for ahead in (False, True):
        workload = parse_workload("poisson:rate=0.5,requests=60,prompt=10,output=1900-2000")
        found = both(workload, FORMULA, replace(config, async_scheduling=ahead))
        assert found.num_steps > compiled_state.GAPS


def test_very_many_gaps_are_counted_in_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loops then count alike, and the statistics hardly move."""
    workload = parse_workload("poisson:rate=30,requests=80,prompt=10-90,output=1-60")
    fine = simulate(workload, FORMULA, SchedulerConfig(150, 200)).summary()["itl_s"]
    monkeypatch.setattr(token_gaps, "MAX_GAPS", 10)
    found = both(workload, FORMULA, SchedulerConfig(150, 200))
    assert found.token_gaps is not None
    assert not (found.token_gaps.gaps_ns % 1000).any()
    assert found.summary()["itl_s"] == pytest.approx(fine, abs=1e-6)


class Limited(LinearLatency):
    """Knows steps of at most 20 tokens."""

    def price_sheet(self) -> PriceSheet:
        """Return the formula with its limit."""
        return replace(super().price_sheet(), max_num_tokens=20)

    def step_ns(self, batch: Batch) -> int:
        """Refuse what the sheet does."""
        if batch.num_tokens > 20:
            raise OutOfDomainError(f"step: {batch.num_tokens} tokens where 20 are known")
        return super().step_ns(batch)


def test_a_step_beyond_a_sheets_limits_is_refused_as_the_backend_does() -> None:
    """With the backend's own words."""
    with pytest.raises(OutOfDomainError, match="step: 22 tokens where 20 are known"):
        simulate(Workload((Request(0, 0, 20, 3), Request(1, 5, 21, 1)), "two"), Limited(1000.0), SchedulerConfig(100, 100))


def test_a_backend_that_takes_what_its_sheet_refuses_is_told() -> None:
    """Rather than asked for ever."""

    class Torn(LinearLatency):
        def price_sheet(self) -> PriceSheet:
            return replace(super().price_sheet(), max_context=10)

    with pytest.raises(OutOfDomainError, match="20 tokens of 1 requests are beyond the price sheet's limits"):
        simulate(Workload((Request(0, 0, 20, 3),), "one"), Torn(1000.0), SchedulerConfig(100, 100))


def test_too_long_requests_are_refused_alike() -> None:
    """Before anything is served."""
    with pytest.raises(WorkloadError, match="exceed max_model_len 100"):
        simulate(Workload((Request(0, 0, 90, 20),), "one"), FORMULA, SchedulerConfig(100, 100))


@pytest.fixture
def others() -> Iterator[tuple[Workload, dict[str, Any], StepLog | None]]:
    """Workloads and settings for the loop in Python."""
    plain = Workload((Request(0, 0, 20, 3),), "one")
    shared = Workload((Request(0, 0, 20, 3, (1,)),), "shares a prefix")
    return iter([(plain, {"policy": "priority"}, None), (shared, {}, None), (plain, {}, StepLog())])


def test_what_it_does_not_know_is_served_in_python(
    others: Iterator[tuple[Workload, dict[str, Any], StepLog | None]], compiled: list[int]
) -> None:
    """Priorities, shared prefixes, and where a log of the steps is asked for."""
    for workload, changes, log in others:
        result = simulate(workload, FORMULA, SchedulerConfig(100, 100, **changes), steps=log)
        assert result.num_steps == 3
    assert compiled == []


class TwiceInRuns(LinearLatency):
    """A decode in a run takes twice as long, which the sheet does not say."""

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Double each."""
        return 2 * super().decode_run_ns(num_computed_tokens, num_steps)


class Twice(TwiceInRuns):
    """So does every step."""

    def step_ns(self, batch: Batch) -> int:
        """Double it."""
        return 2 * super().step_ns(batch)


class Renamed(LinearLatency):
    """Prices as the class that it derives from."""


def test_a_sheet_answers_for_no_class_that_prices_steps_anew(compiled: list[int]) -> None:
    """However many requests there are: a class that overrides prices is asked, and one that does not is priced by its sheet."""
    workload = Workload(tuple(Request(i, 0, 20, 3) for i in range(2)), "two")
    for latency, tpot_s in ((Twice(1e6), 0.002), (TwiceInRuns(1e6), 0.002), (Renamed(1e6), 0.001)):
        assert simulate(workload, latency, SchedulerConfig(100, 100)).summary()["tpot_s"]["mean"] == tpot_s
    assert compiled == [3]
