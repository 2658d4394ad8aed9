"""Replicas behind a router: timelines worked out by hand, and what must hold for every workload."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dooly.errors import InvalidInputError, WorkloadError
from dooly.latency import LatencyBackend, LinearLatency
from dooly.simulation import (
    FleetResult,
    LeastLoaded,
    PrefixAware,
    Replica,
    Request,
    RoundRobin,
    SchedulerConfig,
    SimulationResult,
    StepLog,
    Turn,
    VllmBalancing,
    Workload,
    parse_workload,
    simulate,
    simulate_fleet,
)
from dooly.simulation import _compiled_run as compiled_run
from dooly.simulation import _simulator as simulator
from dooly.simulation._columns import Columns

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.batch import Batch

MS = 1_000_000
AMPLE = SchedulerConfig(max_model_len=1000, num_kv_blocks=1001, max_num_seqs=4, max_num_batched_tokens=100)


class Steps(LatencyBackend):
    """Takes the same time for every step."""

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
        return MS + 10_000 * batch.num_tokens + 100 * sum(batch.num_computed_tokens)


class InTurn(RoundRobin):
    """The same choices, made one by one: no replica is simulated ahead of the others."""


def workload(*rows: tuple[float, int, int], prefix_ids: tuple[tuple[int, ...], ...] = (), block: int = 32) -> Workload:
    """Make a workload of (arrival in ms, prompt tokens, output tokens)."""
    ids = prefix_ids or ((),) * len(rows)
    requests = (Request(i, round(ms * MS), *sizes, ids[i], block) for i, (ms, *sizes) in enumerate(rows))
    return Workload(tuple(requests), "test")


def times_ms(fleet: FleetResult) -> list[tuple[int, float, float, float]]:
    """Return (replica, scheduled, first token, finish) of each row, times in ms."""
    return [
        (place, *(round(1e3 * s, 6) for s in (row.scheduled_s, row.first_token_s, row.finish_s)))
        for place, row in zip(fleet.placements["replica"], fleet.result.rows, strict=True)
    ]


def test_requests_take_turns() -> None:
    """Two engines of one slot: the third request of two tokens waits for the first, at the first engine."""
    engine = Replica(Steps(), replace(AMPLE, max_num_seqs=1))
    fleet = simulate_fleet(workload((0, 5, 2), (0, 5, 2), (0, 5, 2)), [engine, engine])
    assert times_ms(fleet) == [(0, 0, 10, 20), (1, 0, 10, 20), (0, 20, 30, 40)]
    assert fleet.result.num_steps == 6


def test_the_least_loaded_replica_is_the_one_with_fewest_unfinished() -> None:
    """The second request ends at 11; the third comes at 11 to an empty engine 1, the fourth joins engine 0 behind its step."""
    fleet = simulate_fleet(workload((0, 5, 5), (1, 5, 1), (11, 5, 3), (13, 5, 1)), [Replica(Steps(), AMPLE)] * 2, LeastLoaded)
    assert times_ms(fleet) == [(0, 0, 10, 50), (1, 1, 11, 11), (1, 11, 21, 41), (0, 20, 30, 30)]


def test_a_request_ends_when_its_step_does_not_when_it_starts() -> None:
    """At 5 ms engine 1 still runs the one step of its request, so both engines have one and the first is taken."""
    fleet = simulate_fleet(workload((0, 5, 5), (1, 5, 1), (5, 5, 1)), [Replica(Steps(), AMPLE)] * 2, LeastLoaded)
    assert times_ms(fleet) == [(0, 0, 10, 50), (1, 1, 11, 11), (0, 10, 20, 20)]


def test_replicas_may_differ_in_speed_and_settings() -> None:
    """Steps of 10 and of 30 ms; the slow engine has one slot, so its second request waits until 60."""
    slow = Replica(Steps(30), replace(AMPLE, max_num_seqs=1))
    fleet = simulate_fleet(workload(*[(0, 5, 2)] * 4), [Replica(Steps(), AMPLE), slow])
    assert times_ms(fleet) == [(0, 0, 10, 20), (1, 0, 30, 60), (0, 0, 10, 20), (1, 60, 90, 120)]


def test_users_send_their_next_request_wherever_there_is_room() -> None:
    """Two users, steps of 10 and of 25 ms, one token each: at 10, 20 engine 0 is free; at 25 engine 1 is, and 0 is not."""
    requests = tuple(Request(i, 0, 5, 1) for i in range(5))
    fleet = simulate_fleet(
        Workload(requests, "closed", concurrency=2), [Replica(Steps(), AMPLE), Replica(Steps(25), AMPLE)], LeastLoaded
    )
    assert times_ms(fleet) == [(0, 0, 10, 10), (1, 0, 25, 25), (0, 10, 20, 20), (0, 20, 30, 30), (1, 25, 50, 50)]
    assert [round(1e3 * row.arrival_s) for row in fleet.result.rows] == [0, 0, 10, 20, 25]


def test_prompts_follow_their_beginnings() -> None:
    """The third prompt begins as the first did: engine 0 has 64 of its 80 tokens, and needs one step of 16 instead of two."""
    config = replace(AMPLE, max_num_batched_tokens=40)
    prompts = workload((0, 80, 1), (0, 80, 1), (100, 80, 1), prefix_ids=((1, 2), (3, 4), (1, 2)))
    fleet = simulate_fleet(prompts, [Replica(Steps(), config)] * 2, PrefixAware)
    assert times_ms(fleet) == [(0, 0, 20, 20), (1, 0, 20, 20), (0, 100, 110, 110)]
    other = simulate_fleet(prompts, [Replica(Steps(), config)] * 2, lambda *made: PrefixAware(*made, max_imbalance=-1))
    assert times_ms(other)[2] == (0, 100, 110, 110)


def test_a_conversation_stays_where_its_turns_are_cached() -> None:
    """The second turn comes when both engines are idle; it goes to the one that served the first."""
    turns = [Request(0, 0, 20, 1), Request(1, 0, 40, 3, turn=Turn(0)), Request(2, 0, 60, 2, turn=Turn(0, 1, 100 * MS))]
    fleet = simulate_fleet(Workload(tuple(turns), "test"), [Replica(Steps(), AMPLE)] * 2, PrefixAware)
    assert times_ms(fleet) == [(0, 0, 10, 10), (1, 0, 10, 30), (1, 130, 140, 150)]
    assert fleet.result.rows[2].arrival_s == 0.13


def test_a_crowded_replica_is_not_chosen_for_its_cache() -> None:
    """Four prompts begin alike at once: two more than elsewhere is as far as it goes, then the other engine gets one."""
    prompts = workload(*[(0, 80, 9)] * 4, prefix_ids=((1,),) * 4)
    for imbalance, chosen in ((2, (0, 0, 0, 1)), (9, (0, 0, 0, 0)), (0, (0, 1, 0, 1))):
        fleet = simulate_fleet(
            prompts, [Replica(Steps(), AMPLE)] * 2, lambda *made, n=imbalance: PrefixAware(*made, max_imbalance=n)
        )
        assert fleet.placements["replica"] == chosen


def test_vllm_balances_by_what_it_heard_a_moment_ago() -> None:
    """One API server: four requests at once spread; engine 0's end at 10 and 60 ms, engine 1's at 200.

    At 70 ms the server knows that both of its own at engine 0 have ended, but has heard nothing yet, so the two that it sent to
    each count as waiting there: a tie, scanned from engine 0. At 110 ms it has heard, at 100, of one request at engine 0 and two
    at engine 1.
    """
    rows = ((0, 5, 1), (0, 5, 20), (0, 5, 6), (0, 5, 20), (70, 5, 9), (110, 5, 1))
    fleet = simulate_fleet(workload(*rows), [Replica(Steps(), AMPLE)] * 2, lambda *made: VllmBalancing(*made, api_server_count=1))
    assert fleet.placements["replica"] == (0, 1, 0, 1, 0, 0)


ROUTERS = (RoundRobin, InTurn, LeastLoaded, PrefixAware, VllmBalancing)
SPECS = st.builds(
    "{}requests={},prompt=1-{},output=1-{},seed={}{}".format,
    st.sampled_from(
        [
            "poisson:rate=20,",
            "poisson:rate=300,",
            "poisson:rate=inf,",
            "poisson:rate=50,turns=1-2,think=0.02,",
            "closed:concurrency=1,",
            "closed:concurrency=7,",
        ]
    ),
    st.integers(1, 30),
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(0, 99),
    st.sampled_from(["", ",prefix=32,prefixes=2"]),
)
CONFIGS = st.builds(
    SchedulerConfig,
    max_model_len=st.just(450),
    num_kv_blocks=st.integers(30, 60),
    max_num_seqs=st.integers(1, 8),
    max_num_batched_tokens=st.integers(8, 120),
    async_scheduling=st.booleans(),
)


def same(left: SimulationResult, right: SimulationResult) -> bool:
    """Return whether two runs are equal but for how long they took."""
    summaries = [{k: v for k, v in run.summary().items() if k not in {"wall_s", "host_wait_s"}} for run in (left, right)]
    counts = [(run.num_steps, run.num_preemptions) for run in (left, right)]
    return left.rows == right.rows and summaries[0] == summaries[1] and counts[0] == counts[1]


@settings(deadline=None, max_examples=60)
@given(spec=SPECS, config=CONFIGS, router=st.sampled_from(ROUTERS))
def test_one_replica_is_what_simulate_says(spec: str, config: SchedulerConfig, router: type[RoundRobin]) -> None:
    """Behind any router, a single engine serves as it does alone."""
    requests = parse_workload(spec)
    fleet = simulate_fleet(requests, [Replica(ByTokens(), config)], router)
    assert same(fleet.result, simulate(requests, ByTokens(), config))


@settings(deadline=None, max_examples=60)
@given(spec=SPECS, configs=st.lists(CONFIGS, min_size=1, max_size=4))
def test_taking_turns_is_serving_each_part_alone(spec: str, configs: list[SchedulerConfig]) -> None:
    """In an open loop, routed one by one, each replica does what it does with its part of the workload alone."""
    requests = replace(parse_workload(spec), concurrency=None)
    assume(not requests.waits_for_answers)
    replicas = [Replica(ByTokens(), config) for config in configs]
    routed, split = (simulate_fleet(requests, replicas, router) for router in (InTurn, RoundRobin))
    assert same(routed.result, split.result)
    assert routed.placements == split.placements
    for place, (one, config) in enumerate(zip(routed.replicas, configs, strict=True)):
        part = requests.requests[place :: len(configs)]
        assert (one.result is None) == (not part)
        if one.result is not None:
            assert same(one.result, simulate(replace(requests, requests=part), ByTokens(), config))


@settings(deadline=None, max_examples=60)
@given(spec=SPECS, configs=st.lists(CONFIGS, min_size=1, max_size=4), router=st.sampled_from(ROUTERS))
def test_each_request_is_served_once(spec: str, configs: list[SchedulerConfig], router: type[RoundRobin]) -> None:
    """Whatever the router, each replica's rows are those of its requests, and together they are the workload's."""
    requests = parse_workload(spec)
    fleet = simulate_fleet(requests, [Replica(ByTokens(), config) for config in configs], router)
    assert [row.request_id for row in fleet.result.rows] == [request.request_id for request in requests.requests]
    for place, one in enumerate(fleet.replicas):
        rows = tuple(row for row, at in zip(fleet.result.rows, fleet.placements["replica"], strict=True) if at == place)
        assert rows == (() if one.result is None else one.result.rows)
    num_tokens = sum(request.num_output_tokens for request in requests.requests)
    assert fleet.result.token_gaps is not None
    assert int(fleet.result.token_gaps.counts.sum()) == num_tokens - len(requests.requests)
    if requests.concurrency is not None:
        for row in fleet.result.rows:
            assert sum(r.arrival_s <= row.arrival_s < r.finish_s for r in fleet.result.rows) <= requests.concurrency


def test_logs_hold_each_replicas_steps() -> None:
    """Every replica's log has as many steps as its result says, by either way of simulating."""
    requests = parse_workload("poisson:rate=100,requests=20,prompt=1-90,output=1-20")
    for router in (RoundRobin, InTurn):
        logs = [StepLog(), StepLog()]
        fleet = simulate_fleet(requests, [Replica(ByTokens(), AMPLE)] * 2, router, steps=logs)
        found = [one.result.num_steps if one.result else 0 for one in fleet.replicas]
        assert [sum(len(run.ends_ns) for run in log.runs) for log in logs] == found


def test_a_fleet_tells_which_replica_served(tmp_path: Path) -> None:
    """The CSV has a column for it, and the summary an entry for each replica, whose requests add up."""
    fleet = simulate_fleet(workload((0, 5, 2), (0, 5, 2), (0, 5, 2)), [Replica(Steps(), AMPLE)] * 4)
    fleet.write_csv(tmp_path / "rows.csv")
    head, *rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert head.endswith(",finish_s,replica")
    assert [row.rpartition(",")[2] for row in rows] == ["0", "1", "2"]
    assert [one["requests"] for one in fleet.summary()["replicas"]] == [1, 1, 1, 0]


def test_what_is_no_fleet_is_refused() -> None:
    """No replica, no workload, logs for others, and a request that is too long for one of the replicas."""
    one = Replica(Steps(), AMPLE)
    with pytest.raises(InvalidInputError, match="there is no replica; give at least one"):
        simulate_fleet(workload((0, 5, 2)), [])
    with pytest.raises(InvalidInputError, match="workload: 5 is none"):
        simulate_fleet(5, [one])  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="got 1 logs for 2 replicas"):
        simulate_fleet(workload((0, 5, 2)), [one, one], steps=[StepLog()])
    with pytest.raises(WorkloadError, match="exceed max_model_len 8"):
        simulate_fleet(workload((0, 5, 9)), [one, Replica(Steps(), replace(AMPLE, max_model_len=8))], LeastLoaded)


@pytest.mark.parametrize("servers", [1, 3])
def test_vllm_balancing_is_vllms(servers: int) -> None:
    """Over random loads, each API server's choices are those of vLLM's own client."""
    client = pytest.importorskip("vllm.v1.engine.core_client")
    from collections import Counter
    from types import SimpleNamespace

    rng, num_engines, num_requests = np.random.default_rng(servers), 3, 300
    requests = workload(*[(0, 5, 2)] * num_requests).requests
    ours = VllmBalancing(requests, num_engines, api_server_count=servers)
    theirs = [
        SimpleNamespace(
            core_engines=list(range(num_engines)),
            lb_engines=[[0, 0, 0.0] for _ in range(num_engines)],
            engine_inflight=Counter(),
            reqs_in_flight={},
            client_count=servers,
            eng_start_index=num_engines * place // servers,
        )
        for place in range(servers)
    ]
    for number in range(num_requests):
        if rng.random() < 0.1:
            found = [(int(rng.integers(9)), int(rng.integers(9)), float(rng.random())) for _ in range(num_engines)]
            ours.look([SimpleNamespace(num_waiting=w, num_running=r, kv_cache_usage=u, num_unfinished=0) for w, r, u in found])
            for server in theirs:
                server.lb_engines = [list(counts) for counts in found]
        server = theirs[number % servers]
        asked = SimpleNamespace(request_id=str(number), data_parallel_rank=None, pooling_params=None)
        assert ours.choose(number, ()) == client.DPLBAsyncMPClient.get_core_engine_for_request(server, asked)
        if number > 5 and rng.random() < 0.8:
            ended = int(str(next(iter(server.reqs_in_flight))))
            ours.finish(ended)
            server.engine_inflight[server.reqs_in_flight.pop(str(ended))] -= 1


@pytest.mark.parametrize("number", [1, 3])
def test_rows_of_a_large_fleet_are_columns(number: int) -> None:
    """They are put in the workload's order as columns, so that none is made before it is asked for."""
    requests = parse_workload("poisson:rate=100,requests=60,prompt=1-90,output=1-9,seed=3")
    fleet = simulate_fleet(requests, [Replica(ByTokens(), AMPLE)] * number)
    assert isinstance(fleet.result.rows, Columns)
    by_id = {row.request_id: row for one in fleet.replicas if one.result for row in one.result.rows}
    assert list(fleet.result.rows) == [by_id[request.request_id] for request in requests.requests]


def test_a_closed_loop_of_one_engine_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `simulate` has it: no router is to look at what the engine does."""
    served: list[int] = []

    def counted(*args: Any) -> Any:  # noqa: ANN401 - passed through
        found = compiled_run.serve_compiled(*args)
        served.append(found is not None)
        return found

    monkeypatch.setattr(simulator, "serve_compiled", counted)
    requests = parse_workload("closed:concurrency=4,requests=300,prompt=1-90,output=1-9")
    simulate_fleet(requests, [Replica(LinearLatency(1e6), AMPLE)])
    assert served == [True]
