"""From a gateway's counts to TTFT and TPOT: steps that are written out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.adapters.service import ServerState, Traffic, server_latencies
from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.predict import default_serving, load_latency_model
from dooly.simulation import parse_workload, scheduler_config, simulate

if TYPE_CHECKING:
    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel
    from dooly.simulation import SchedulerConfig


@pytest.fixture(scope="module")
def config(serving: ServingConfig, latency: LatencyModel) -> SchedulerConfig:
    """The scheduler's settings."""
    return scheduler_config(serving, latency)


def _s(latency: LatencyModel, *batches: Batch) -> float:
    return float(np.sum([latency.step_ns(batch) for batch in batches])) / 1e9


def test_an_idle_server_computes_the_prompt(latency: LatencyModel, config: SchedulerConfig) -> None:
    """TTFT is the prompt's step, without what lies in the cache; TPOT the step of its decode behind it."""
    (found,) = server_latencies(latency, config, [ServerState(100, 0, num_tokens_generated=20, prefix_cache_score=0.5)])
    assert found.ttft_s == pytest.approx(_s(latency, Batch((50,), (50,))))
    assert found.tpot_s == pytest.approx(_s(latency, Batch((1,), (120,))))


def test_running_requests_decode_in_every_step(latency: LatencyModel, config: SchedulerConfig) -> None:
    """They share the tokens in the cache evenly; the step under way has run by half, and the one behind it is scheduled."""
    capacity = (config.num_kv_blocks - 1) * config.block_size
    (found,) = server_latencies(latency, config, [ServerState(50, 3, kv_cache_percentage=600 / capacity)])
    decode = Batch((1, 1, 1, 1), (200, 200, 200, 50), 0)
    assert found.tpot_s == pytest.approx(_s(latency, decode))
    prompt = Batch((1, 1, 1, 50), (200, 200, 200, 0))
    assert latency.schedules_ahead
    assert found.ttft_s == pytest.approx(_s(latency, prompt) + 1.5 * found.tpot_s)


@pytest.mark.parametrize("num_tokens", [16, 500, 8_000, 30_000])
def test_an_idle_server_takes_as_long_as_simulated(model: ModelSource, num_tokens: int) -> None:
    """Its host prepares the prompt, launches the decode behind it before it looks, and the power limit slows long prompts."""
    serving = default_serving(model, "h200")
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    config = scheduler_config(serving, latency)
    (found,) = server_latencies(latency, config, [ServerState(num_tokens, 0)])
    result = simulate(parse_workload(f"constant:rate=1,requests=1,prompt={num_tokens},output=2"), latency, config)
    assert found.ttft_s == pytest.approx(result.summary()["ttft_s"]["mean"], rel=1e-3)


def test_prompts_that_wait_go_first(latency: LatencyModel, config: SchedulerConfig) -> None:
    """Of five prompts of 50 tokens two fit a step of 128: two whole steps, then the own one alone."""
    (found,) = server_latencies(latency, config, [ServerState(50, 0, num_request_waiting=4)])
    assert found.ttft_s == pytest.approx(2 * _s(latency, Batch((50, 50), (0, 0))) + _s(latency, Batch((50,), (0,))))
    (told,) = server_latencies(latency, config, [ServerState(50, 0, num_request_waiting=9, prefill_tokens_in_flight=200)])
    assert told.ttft_s == pytest.approx(found.ttft_s)


def test_a_long_prompt_goes_in_chunks(latency: LatencyModel, config: SchedulerConfig) -> None:
    """300 tokens take steps of 128, 128 and 44; who waits in front of it as long again for each."""
    (alone,) = server_latencies(latency, config, [ServerState(300, 0)])
    chunks = (Batch((128,), (0,), 1), Batch((128,), (128,), 0), Batch((44,), (256,), 0))
    assert alone.ttft_s == pytest.approx(_s(latency, *chunks))
    (behind,) = server_latencies(latency, config, [ServerState(300, 0, num_request_waiting=2)])
    assert behind.ttft_s == pytest.approx(3 * alone.ttft_s)


def test_many_chunks_are_priced_at_some_of_them(latency: LatencyModel, config: SchedulerConfig) -> None:
    """At 16 positions of 74, a prompt beside 121 decodes is priced within a few percent of all."""
    wide = replace(config, max_num_seqs=8, max_num_batched_tokens=12)
    (found,) = server_latencies(latency, wide, [ServerState(500, 5)])
    steps = [Batch((1,) * 5 + (min(7, 500 - at),), (0,) * 5 + (at,), 0) for at in range(0, 500, 7)]
    assert found.ttft_s == pytest.approx(_s(latency, *steps) + found.tpot_s / 2, rel=0.03)


def test_a_full_server_lets_a_request_wait(model: ModelSource) -> None:
    """Sixteen clients of eight seats wait as long as simulated, within a quarter, where the means are told; else that is said."""
    serving = default_serving(model, "h200", max_num_seqs=8)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    config = scheduler_config(serving, latency)
    served = simulate(parse_workload("closed:concurrency=16,requests=400,prompt=50-150,output=128-384,seed=0"), latency, config)
    # One client is the request: seven others wait in front of it.
    state = ServerState(100, 8, num_request_waiting=7, kv_cache_percentage=0.01)
    (found,) = server_latencies(latency, config, [state], Traffic(100, 256))
    assert found.ttft_s == pytest.approx(served.summary()["ttft_s"]["p50"], rel=0.25)
    assert not found.is_least
    (least,) = server_latencies(latency, config, [state])
    assert least.is_least
    assert least.ttft_s < found.ttft_s
    assert not server_latencies(latency, config, [ServerState(100, 7)])[0].is_least


def test_a_fuller_server_answers_no_sooner(model: ModelSource) -> None:
    """Long prompts in front take their time whether or not seats or cache lack as well."""
    serving = default_serving(model, "h200", max_num_seqs=256)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    config, traffic = scheduler_config(serving, latency), Traffic(2048, 128)
    seats = [ServerState(2048, running, num_request_waiting=64, kv_cache_percentage=0.05) for running in range(180, 257, 4)]
    cache = [ServerState(2048, 128, num_request_waiting=64, kv_cache_percentage=share / 20) for share in range(4, 21)]
    for states in (seats, cache):
        told = [found.ttft_s for found in server_latencies(latency, config, states, traffic)]
        assert all(later >= 0.98 * sooner for sooner, later in pairwise(told)), told
        assert told[0] > 3.0


def test_a_full_cache_lets_a_request_wait(latency: LatencyModel, config: SchedulerConfig) -> None:
    """As long as it takes those that run to leave it as much room as the request's prompt and those in front need."""
    traffic, state = Traffic(100, 50), ServerState(300, 4, kv_cache_percentage=1.0)
    (found,) = server_latencies(latency, config, [state], traffic)
    room = ServerState(300, 4, kv_cache_percentage=1 - 301 / ((config.num_kv_blocks - 1) * config.block_size))
    (free,) = server_latencies(latency, config, [room], traffic)
    assert found.ttft_s - free.ttft_s == pytest.approx(300 / 150 * 50 / 4 * found.tpot_s, rel=0.01)
    assert server_latencies(latency, config, [state])[0].is_least


def test_a_full_server_decodes_beside_one_fewer(latency: LatencyModel, config: SchedulerConfig) -> None:
    """The request runs beside as many as there are other seats."""
    full, fewer = server_latencies(latency, config, [ServerState(10, 8), ServerState(10, 7)])
    assert full.tpot_s == fewer.tpot_s
    seats = replace(config, max_num_active_seqs=4, max_num_scheduled_tokens=20)
    (narrow,) = server_latencies(latency, seats, [ServerState(10, 8)])
    assert narrow.tpot_s == server_latencies(latency, seats, [ServerState(10, 3)])[0].tpot_s < full.tpot_s


def test_prompts_come_as_often_as_requests_end(latency: LatencyModel, config: SchedulerConfig) -> None:
    """Of four requests that put out 20 tokens each, one ends every fifth step, and a prompt comes beside the others."""
    capacity = (config.num_kv_blocks - 1) * config.block_size
    state = ServerState(50, 3, kv_cache_percentage=600 / capacity)
    (found,) = server_latencies(latency, config, [state], Traffic(prompt_tokens=60, output_tokens=20))
    decode_s = _s(latency, Batch((1, 1, 1, 1), (200, 200, 200, 50), 0))
    mixed_s = _s(latency, Batch((1, 1, 1, 60), (200, 200, 200, 0)))
    assert found.tpot_s == pytest.approx(decode_s + 4 / 20 * (mixed_s - decode_s))
    prompt_s = _s(latency, Batch((1, 1, 1, 50), (200, 200, 200, 0)))
    assert found.ttft_s == pytest.approx(prompt_s + 1.5 * decode_s)
    (longer,) = server_latencies(latency, config, [state], Traffic(prompt_tokens=250, output_tokens=20))
    chunk_s = _s(latency, Batch((1, 1, 1, 125), (200, 200, 200, 0)))
    assert longer.tpot_s == pytest.approx(decode_s + 4 / 20 * 2 * (chunk_s - decode_s))
    (idle,) = server_latencies(latency, config, [ServerState(50, 0)], Traffic(60, 20))
    assert idle == server_latencies(latency, config, [ServerState(50, 0)])[0]


def test_lengths_that_are_none_are_refused() -> None:
    """The message names the options."""
    for lengths in ((0.5, 10), (10, 0), (float("nan"), 10), (float("inf"), 10), (10, float("inf"))):
        with pytest.raises(InvalidInputError, match="--mean-prompt-tokens"):
            Traffic(*lengths)


def test_a_request_that_is_too_long_is_refused(latency: LatencyModel, config: SchedulerConfig) -> None:
    """The message names the setting."""
    with pytest.raises(InvalidInputError, match=r"513 tokens, the next one included, exceeds the 512 of --max-model-len"):
        server_latencies(latency, config, [ServerState(500, 0, num_tokens_generated=12)])


def test_a_host_that_is_slower_than_its_device_sets_the_pace(model: ModelSource, serving: ServingConfig) -> None:
    """Beside an H100 a small prompt takes its launches, and those of the decode behind it."""
    fast = load_latency_model(model=model, serving=serving, hardware="h100")
    assert fast.host is not None
    (found,) = server_latencies(fast, scheduler_config(serving, fast), [ServerState(16, 0)])
    launches = (fast.host.launch_ns(16, only_decodes=False), fast.host.launch_ns(1, only_decodes=True))
    assert found.ttft_s == pytest.approx(sum(launches) / 1e9)


def test_an_engine_that_does_not_schedule_ahead_waits_for_its_host(model: ModelSource, serving: ServingConfig) -> None:
    """Each decode is then prepared when the one before has run."""
    ahead = load_latency_model(model=model, serving=serving, hardware="h100")
    after = load_latency_model(model=model, serving=replace(serving, async_scheduling=False), hardware="h100")
    config, state = scheduler_config(serving, ahead), ServerState(100, 4)
    (first,), (second,) = (server_latencies(latency, config, [state]) for latency in (ahead, after))
    assert ahead.host is not None
    assert second.tpot_s - first.tpot_s == pytest.approx(ahead.host.prepare_ns / 1e9)


states = st.builds(
    ServerState,
    st.integers(0, 480),
    st.integers(0, 40),
    st.integers(0, 1000),
    st.floats(0, 1),
    st.integers(0, 31),
    st.floats(0, 1),
    st.integers(0, 10_000),
)


@settings(max_examples=50)
@given(st.lists(states, min_size=1, max_size=5))
def test_many_states_are_priced_as_one_by_one(latency: LatencyModel, config: SchedulerConfig, some: list[ServerState]) -> None:
    """Whatever else is asked at once, each answer is its own, finite and above 0."""
    together = server_latencies(latency, config, some)
    for state, found in zip(some, together, strict=True):
        (alone,) = server_latencies(latency, config, [state])
        assert found == pytest.approx(alone, rel=1e-9)
        assert 0 < found.tpot_s < 1
        assert 0 < found.ttft_s < 1000
