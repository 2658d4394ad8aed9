"""An engine with a KV-cache or prefill policy: what its steps read, when blocks get free, and that nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError, MissingOperationError, UnsupportedModelError
from dooly.kv_policy import KVPolicy, SelectedPrompt, Term
from dooly.latency import LinearLatency, SelectingBackend
from dooly.predict import default_serving, load_latency_model
from dooly.report._step_shares import step_shares
from dooly.simulation import (
    FleetLayout,
    LeastLoaded,
    Replica,
    Request,
    SchedulerConfig,
    StepLog,
    Workload,
    check_acts,
    load_compiled_loop,
    parse_workload,
    policy_terms,
    scheduler_config,
    simulate,
    simulate_fleet,
)
from dooly.simulation._make_scheduler import make_scheduler
from dooly.simulation._remote_kv import RemoteKV

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.predict import LatencyModel
    from dooly.simulation import SimulationResult

MS = 1_000_000
PLAIN = SchedulerConfig(max_model_len=8192, num_kv_blocks=1000, max_num_batched_tokens=8192, enable_prefix_caching=False)


class Selecting(LinearLatency):
    """Cached tokens cost a microsecond, and selecting a millisecond a prompt."""

    def __init__(self) -> None:
        super().__init__(MS, per_cached_token_ns=1000)
        self.selected: list[SelectedPrompt] = []

    def selection_ns(self, policy: KVPolicy, prompts: Sequence[SelectedPrompt]) -> int:
        """Note the prompts."""
        assert policy.name
        self.selected += prompts
        return MS * len(prompts)


def policy(name: str, *terms: Term, budget: float = 0.2) -> KVPolicy:
    """Return a policy with these terms alone, or with all."""
    return KVPolicy(name, budget, terms or None)


def workload(*sizes: tuple[int, int]) -> Workload:
    """Return requests of so many prompt and output tokens that arrive together."""
    return Workload(tuple(Request(place, 0, *size) for place, size in enumerate(sizes)), "made up")


def finish_ms(result: SimulationResult) -> list[float]:
    """Return when each request finished, in milliseconds."""
    return [round(1e3 * row.finish_s, 6) for row in result.rows]


def test_decodes_read_what_is_kept_and_all_that_came_after() -> None:
    """Of 1,000 tokens 200 are read, then one more a step; the prompt itself is computed whole."""
    for name in ("snapkv", "laprox"):
        config = replace(PLAIN, kv_policy=policy(name, Term.READS))
        result = simulate(workload((1000, 4)), Selecting(), config)
        assert finish_ms(result) == [pytest.approx(1 + 3 + (200 + 201 + 202) / 1000)]


def test_selecting_follows_the_step_that_ends_a_prompt() -> None:
    """A chunked prompt is selected from once, behind its last chunk; one too short for the window is not."""
    latency = Selecting()
    assert isinstance(latency, SelectingBackend)
    config = replace(PLAIN, max_num_batched_tokens=600, kv_policy=policy("snapkv", Term.SELECTION))
    result = simulate(workload((1000, 1)), latency, config)
    assert (latency.selected, finish_ms(result)) == ([(1000, 0)], [pytest.approx(1 + 1 + 0.6 + 1)])
    short = Selecting()
    assert finish_ms(simulate(workload((100, 1)), short, config)) == [1]
    assert short.selected == []


def test_a_prompt_computed_anew_is_selected_from_once() -> None:
    """A step that ends a prompt is run once, though all requests lack one token: a preempted one's last chunk may be a token."""
    latency, log = Selecting(), StepLog()
    config = replace(PLAIN, num_kv_blocks=37, max_num_batched_tokens=64, kv_policy=policy("snapkv", budget=0.5))
    result = simulate(workload((323, 82), (341, 117), (215, 121)), latency, config, steps=log)
    assert result.num_preemptions > 0
    assert len(latency.selected) == 3 + result.num_preemptions
    assert {len(run.ends_ns) for run in log.runs if run.selection is not None} == {1}


def test_a_prefix_that_is_found_selects_nothing(h200: LatencyModel) -> None:
    """A sparse prefill chooses for the segments that it computes: of a prompt whose first three quarters are found, a quarter."""
    latency, sparse = Selecting(), policy("critiprefill", Term.SELECTION)
    config = replace(PLAIN, max_num_batched_tokens=3000, enable_prefix_caching=True, kv_policy=sparse)
    alike = tuple(Request(place, 100 * place * MS, 8000, 1, tuple(range(6)), 1000) for place in (0, 1))
    simulate(Workload(alike, "made up"), latency, config)
    assert latency.selected == [(8000, 0), (8000, 6000)]
    price = h200.selections
    whole, quarter, all_but = (price.latency(sparse, *found) for found in ((8000,), (8000, 6000), (8000, 7999)))
    assert quarter.ns == pytest.approx(whole.ns / 4)
    assert all_but.ns < 0.001 * whole.ns
    assert price.latency(policy("snapkv"), 8000, 6000) == price.latency(policy("snapkv"), 8000)


@pytest.mark.parametrize(("name", "held"), [("snapkv", 13), ("adakv", 14), ("layer-defensivekv", 14)])
@pytest.mark.parametrize("is_ahead", [False, True])
def test_blocks_get_free_when_the_prompt_has_run(name: str, held: int, is_ahead: bool) -> None:  # noqa: FBT001 - a case
    """A second prompt that lacks room is admitted as soon as the first one's dropped tokens make it, with head-wise pages too."""
    config = replace(PLAIN, num_kv_blocks=73, async_scheduling=is_ahead)
    requests = workload((1040, 40), (800, 2))
    without = simulate(requests, LinearLatency(MS), config)
    with_blocks = simulate(requests, LinearLatency(MS), replace(config, kv_policy=policy(name, Term.BLOCKS)))
    assert without.rows[1].scheduled_s > 0.03
    assert with_blocks.rows[1].scheduled_s <= 0.003
    scheduler = make_scheduler(requests.requests, replace(PLAIN, kv_policy=policy(name, Term.BLOCKS)))
    scheduler.add(0)
    scheduler.complete(scheduler.schedule())
    # 208 tokens fill 13 blocks; pages of each head are as many and half of one more.
    assert scheduler._kv_cache.capacity - scheduler._kv_cache.num_free == held
    assert scheduler.has_unfinished


@pytest.mark.parametrize("name", ["snapkv", "layer-defensivekv"])
@pytest.mark.parametrize("terms", [(Term.READS,), (Term.BLOCKS,), ()])
def test_a_log_counts_the_blocks_that_the_cache_holds(name: str, terms: tuple[Term, ...]) -> None:
    """Half pages and dropped tokens count as the cache counts them, and what is kept but not read counts too."""
    requests, config = workload((1040, 40)), replace(PLAIN, kv_policy=policy(name, *terms))
    log = StepLog()
    simulate(requests, LinearLatency(MS), config, steps=log)
    logged = [run.num_kv_blocks(step, 16) for run in log.runs for step in range(len(run.ends_ns))]
    scheduler, held = make_scheduler(requests.requests, config), []
    scheduler.add(0)
    while scheduler.has_unfinished:
        step = scheduler.schedule()
        held.append(scheduler._kv_cache.capacity - scheduler._kv_cache.num_free)
        scheduler.complete(step)
    assert logged == held


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_all_requests_end_and_all_blocks_get_free(data: st.DataObject) -> None:
    """Whatever is served, preempted and chunked, every request ends, and no block is held then."""
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 600), st.integers(1, 60)), min_size=1, max_size=12))
    arrivals = sorted(data.draw(st.lists(st.integers(0, 30 * MS), min_size=len(sizes), max_size=len(sizes))))
    requests = tuple(Request(place, ns, *size) for place, (ns, size) in enumerate(zip(arrivals, sizes, strict=True)))
    config = replace(
        PLAIN,
        num_kv_blocks=data.draw(st.integers(45, 90)),
        max_num_batched_tokens=data.draw(st.sampled_from([128, 512, 8192])),
        async_scheduling=data.draw(st.booleans()),
        policy=data.draw(st.sampled_from(["fcfs", "priority"])),
        kv_policy=policy(data.draw(st.sampled_from(["snapkv", "adakv"])), budget=data.draw(st.sampled_from([0.2, 0.5]))),
    )
    log = StepLog()
    result = simulate(Workload(requests, "made up"), Selecting(), config, steps=log)
    assert [row.num_output_tokens for row in result.rows] == [output for _, output in sizes]
    assert sum(len(run.ends_ns) for run in log.runs) == result.num_steps
    scheduler = make_scheduler(requests, config)
    for place in range(len(requests)):
        scheduler.add(place)
    while scheduler.has_unfinished:
        scheduler.complete(scheduler.schedule())
    assert scheduler._kv_cache.num_free == scheduler._kv_cache.capacity


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_without_terms_and_at_budget_1_nothing_changes(data: st.DataObject) -> None:
    """A policy of no terms, and any at budget 1, give the times of no policy, in Python and where the loop is compiled."""
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 60)), min_size=1, max_size=12))
    latency = LinearLatency(MS, per_token_ns=100, per_cached_token_ns=3, per_query_key_pair_ns=0.25)
    config = replace(PLAIN, num_kv_blocks=600, async_scheduling=data.draw(st.booleans()))
    load_compiled_loop()
    plain = simulate(workload(*sizes), latency, config)
    for name, steps in product(("snapkv", "laprox", "critiprefill"), (None, StepLog())):
        for same in (KVPolicy(name, 0.2, ()), KVPolicy(name, 1)):
            found = simulate(workload(*sizes), latency, replace(config, kv_policy=same), steps=steps)
            assert [*found.rows] == [*plain.rows]
            assert (found.num_steps, found.num_preemptions) == (plain.num_steps, plain.num_preemptions)


def test_the_compiled_loop_leaves_policies_to_python() -> None:
    """Where the compiled loop is loaded, a policy counts all the same, as where it is not asked."""
    requests = workload(*[(1000, 4)] * 4)
    latency = LinearLatency(MS, per_cached_token_ns=1000)
    config = replace(PLAIN, kv_policy=policy("snapkv", Term.READS))
    in_python = simulate(requests, latency, config, steps=StepLog())
    load_compiled_loop()
    assert [*simulate(requests, latency, config).rows] == [*in_python.rows]
    assert [*simulate(requests, latency, PLAIN).rows] != [*in_python.rows]


def test_a_sparse_prefill_attends_to_fewer_pairs() -> None:
    """A prompt of 8,192 tokens takes what its pairs do, the first of four layers whole."""
    latency, prompt = LinearLatency(MS, per_query_key_pair_ns=1), KVPolicy("critiprefill", 0.1, (Term.PREFILL,))
    config = replace(PLAIN, kv_policy=prompt, num_attention_layers=4)
    (row,) = simulate(workload((8000, 1)), latency, config).rows
    sparse = sum(new * far + new * (new + 1) // 2 for new, far in prompt.attended(8000, 0, 8000))
    whole = 8000 * 8001 // 2
    assert sparse < 0.6 * whole
    assert round(1e9 * row.finish_s) == pytest.approx(MS + 0.75 * sparse + 0.25 * whole, abs=2)


@pytest.fixture(scope="module")
def h200() -> LatencyModel:
    """Llama-3.1-8B on an H200."""
    model = find_model("llama-3.1-8b")
    return load_latency_model(model=model, serving=default_serving(model, "h200", max_model_len=40_000), hardware="h200")


def test_attention_is_priced_as_it_sees_the_batch(h200: LatencyModel) -> None:
    """Shares of layers add up: half of them sparse lie half way between; beyond attention nothing changes."""
    plain, seen = Batch((4096,), (28_672,)), Batch((2048, 2048), (4096, 4096), 0)
    whole, half, sparse = (
        h200.step(Batch((4096,), (28_672,), 0, (), attended)) for attended in ((), ((0.5, plain), (0.5, seen)), ((1.0, seen),))
    )
    assert half.seconds == pytest.approx((whole.seconds + sparse.seconds) / 2, rel=1e-6)
    saved = {name for name, seconds in whole.breakdown_s.items() if seconds != sparse.breakdown_s[name]}
    assert saved == {"model.layers.*.self_attn.attn"}
    assert h200.step_ns(Batch((4096,), (28_672,), 0, (), ((1.0, seen),))) == pytest.approx(1e9 * sparse.seconds, rel=1e-6)


def test_more_users_fit_below_a_tpot_at_a_fifth(h200: LatencyModel) -> None:
    """At prompts of 32 K tokens and answers of 1,024, more users at once have less than 30 ms a token with 20 % of the cache."""
    serving = default_serving(find_model("llama-3.1-8b"), "h200", max_model_len=40_000)

    def tpot_s(users: int, kept: KVPolicy | None) -> float:
        spec = f"closed:concurrency={users},requests={2 * users},prompt=32768,output=1024"
        served = simulate(parse_workload(spec), h200, scheduler_config(replace(serving, kv_policy=kept), h200))
        return float(served.summary()["tpot_s"]["mean"])

    def most(kept: KVPolicy | None) -> int:
        return max(users for users in (4, 8, 12, 16, 20, 24) if users == 4 or tpot_s(users, kept) < 0.03)

    assert most(KVPolicy("laprox", 0.2)) > most(None) < 24


def test_a_page_shows_where_the_time_of_steps_goes(h200: LatencyModel) -> None:
    """Shares of operations are of what steps read, selecting among them, and add up to one."""
    serving = default_serving(find_model("llama-3.1-8b"), "h200", max_model_len=40_000)
    requests, shares = parse_workload("closed:concurrency=2,requests=4,prompt=32768,output=64"), {}
    for kept in (None, KVPolicy("criticalkv", 0.2), KVPolicy("critiprefill", 0.2)):
        log = StepLog()
        simulate(requests, h200, scheduler_config(replace(serving, kv_policy=kept), h200), steps=log)
        found = step_shares(log, h200)
        assert sum(found.values()) == pytest.approx(1)
        shares[kept and kept.name] = found
    attention = ("model.layers.*.self_attn.attn", "family")
    assert shares["critiprefill"][attention] < 0.8 * shares[None][attention]
    assert 0.02 < shares["criticalkv"]["selection", "estimated"] < 0.3
    assert ("selection", "estimated") not in shares[None]


def test_engines_behind_a_router_have_policies() -> None:
    """Each of two engines reads a fifth of the prompts that it is sent."""
    replicas = [Replica(Selecting(), replace(PLAIN, kv_policy=policy("snapkv", Term.READS)))] * 2
    fleet = simulate_fleet(workload((1000, 3), (1000, 3)), replicas, LeastLoaded)
    assert fleet.placements["replica"] == (0, 1)
    assert finish_ms(fleet.result) == [pytest.approx(1 + 2 + (200 + 201) / 1000)] * 2


def test_terms_are_told_apart(h200: LatencyModel) -> None:
    """Selecting makes the first token later, reads make the others sooner; more are served at once with their blocks freed."""
    serving = default_serving(
        find_model("llama-3.1-8b"), "h200", max_model_len=40_000, num_gpu_blocks_override=9000, kv_policy=KVPolicy("adakv", 0.2)
    )
    requests = parse_workload("closed:concurrency=8,requests=16,prompt=32768,output=64")
    rows = policy_terms(serving, h200, lambda config: FleetLayout().serve(requests, h200, config, serving).result)
    none, caching, selection, reads, blocks = rows
    assert [row.term for row in rows] == ["none", "no prefix caching", "selection", "reads", "blocks"]
    assert caching.ttft_s == none.ttft_s
    assert selection.ttft_s > caching.ttft_s
    assert reads.tpot_s < selection.tpot_s
    assert blocks.num_at_once > reads.num_at_once
    # The account is of the last alone.
    after = dict(h200.priced_ns)
    h200.reset_account()
    FleetLayout().serve(requests, h200, scheduler_config(serving, h200), serving)
    assert after == pytest.approx(h200.priced_ns)


def test_selecting_is_estimated_on_a_device_and_refused_where_nothing_tells(h200: LatencyModel) -> None:
    """On an H200 it grows with the prompt; where nothing tells, the next step is one that works on such a device."""
    price = h200.selections
    short, long = (price.latency(KVPolicy("laprox", 0.2), number) for number in (8192, 131_072))
    assert short[1] == long[1] == "estimated"
    assert 8 < long[0] / short[0] < 16
    assert price.latency(KVPolicy("criticalkv", 0.2), 8192)[0] > short[0] > price.latency(KVPolicy("snapkv", 0.2), 8192)[0]
    on_cpu = replace(price.environment, device="Xeon", device_kind="cpu")
    cases = (
        (on_cpu, "laprox", "run `dooly kv profile llama-3.1-8b --db PATH --policy laprox --budget 0.2` there"),
        (on_cpu, "critiprefill", "leave it out, or simulate a device"),
        (price.environment, "laprox", "leave it out, or simulate a device"),
    )
    for environment, name, step in cases:
        with pytest.raises(MissingOperationError, match=step):
            replace(price, hardware=None, environment=environment).latency(KVPolicy(name, 0.2), 8192)


@pytest.mark.parametrize(
    ("name", "longest", "room"),
    [
        ("snapkv", 150, "; the window of 32 tokens is always kept$"),
        ("critiprefill", 4600, "; the first 4,096 tokens and the last segment, of up to 512, are prefilled whole"),
    ],
)
def test_a_policy_that_changes_nothing_is_refused_by_what_it_keeps_whole(name: str, longest: int, room: str) -> None:
    """The message says what this policy keeps or computes whole, and no more; one longer prompt is enough."""
    with pytest.raises(InvalidInputError, match=f"changes nothing for prompts of {longest:,} tokens at most{room}"):
        check_acts(policy(name), workload((40, 1), (longest, 1)))
    check_acts(policy(name), workload((40, 1), (longest + 20, 1)))
    check_acts(None, workload((40, 1)))


def test_what_is_not_simulated_is_refused() -> None:
    """Latent attention, prefix caching beside dropped blocks, and fleets that move caches are errors of one line."""
    deepseek = find_model("deepseek-v2-lite")
    latency = load_latency_model(model=deepseek, hardware="h200")
    with pytest.raises(UnsupportedModelError, match="keys and values for each head"):
        latency.selection_ns(KVPolicy("snapkv", 0.2), [SelectedPrompt(1000)])
    with pytest.raises(InvalidInputError, match="set enable_prefix_caching to False"):
        replace(PLAIN, enable_prefix_caching=True, kv_policy=KVPolicy("snapkv", 0.2))
    with pytest.raises(InvalidInputError, match="not simulated between prefill and decode replicas"):
        make_scheduler(workload((100, 1)).requests, replace(PLAIN, kv_policy=KVPolicy("snapkv", 0.2)), RemoteKV())
    ranks = [Replica(LinearLatency(MS), replace(PLAIN, kv_policy=KVPolicy("snapkv", 0.2)))] * 2
    with pytest.raises(InvalidInputError, match="have drafts or policies"):
        simulate_fleet(workload((100, 1)), ranks, in_step=True)
    with pytest.raises(InvalidInputError, match="no more and no less"):
        Batch((2,), (0,), 0, (), ((1.0, Batch((1,), (0,))),))
    assert np.array_equal(latency.steps([Batch((1,), (10,))]).extrapolated, [False])
