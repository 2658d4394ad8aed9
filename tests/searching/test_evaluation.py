"""One simulation of a search."""

from __future__ import annotations

import math

import pytest

from dooly import find_model
from dooly.kv_policy import KVPolicy
from dooly.latency import slowed_host
from dooly.predict import Interconnect, load_latency_model
from dooly.searching import Evaluation, combine, evaluate
from dooly.simulation import FleetLayout, parse_workload, scheduler_config, simulate
from dooly.speculation import SpeculativeConfig


def test_doubts_are_of_one_simulation_alone() -> None:
    """The share of steps beyond what was measured is that of the requests, whatever the same candidate served before."""
    settings = {"max_num_batched_tokens": (65536,), "max_model_len": (65536,)}
    (candidate,) = combine([find_model("llama-3.1-8b")], ["h200"], settings)
    shares = []
    for prompt in (60_000, 100, 60_000):
        found = evaluate(candidate, parse_workload(f"constant:rate=1,requests=1,prompt={prompt},output=1"), 1.0)
        assert isinstance(found, Evaluation)
        shares.append(found.extrapolated)
        assert Evaluation.from_json(found.to_json()) == found
    assert shares == [pytest.approx(1.0), 0.0, shares[0]]


def test_what_is_too_long_for_one_model_is_searched_for_the_other() -> None:
    """Sequences beyond a model's positions are the reason of its candidates alone."""
    models = [find_model(name) for name in ("llama-3.1-8b", "qwen3-32b")]
    workload = parse_workload("constant:rate=1,requests=1,prompt=100,output=1")
    fits, too_long = (evaluate(each, workload, 1.0) for each in combine(models, ["h200"], {"max_model_len": (65536,)}))
    assert isinstance(fits, Evaluation)
    assert isinstance(too_long, str)
    assert "65536 is more than the 40960 positions that qwen3-32b has" in too_long


def test_a_slower_host_is_slower_once() -> None:
    """Candidates that share a model's operations each have the host that was asked for, as `simulate` has it."""
    workload = parse_workload("constant:rate=inf,requests=4,prompt=1000,output=8")
    for slow in combine([find_model("llama-3.1-8b")], ["h200"], {"max_num_batched_tokens": (1024, 2048)}, host_slowdown=3.0):
        latency = load_latency_model(model=slow.model, serving=slow.serving, hardware="h200")
        latency.host = slowed_host(latency.host, 3.0)
        expected = simulate(workload, latency, scheduler_config(slow.serving, latency)).summary()["ttft_s"]["mean"]
        found = evaluate(slow, workload, math.inf)
        assert isinstance(found, Evaluation)
        assert found.latencies_s["ttft_mean"] == expected


def test_a_policy_that_changes_nothing_is_refused() -> None:
    """A candidate whose policy has no room in any prompt says so, as a simulation does, and is not told to be as good as none."""
    (candidate,) = combine([find_model("llama-3.1-8b")], ["h200"], {"kv_policy": (KVPolicy("snapkv", 0.1),)})
    found = evaluate(candidate, parse_workload("constant:rate=1,requests=2,prompt=100,output=1"), 1.0)
    assert isinstance(found, str)
    assert "--kv-budget: snapkv at 0.1 changes nothing for prompts of 100 tokens at most" in found


DRAFTS = SpeculativeConfig("ngram", 3, (0.5,) * 3)
APART = FleetLayout(1, None, 1, 1, Interconnect(1e9, 1e3))


@pytest.mark.parametrize(
    ("model", "drafts", "fleet", "reason"),
    [
        ("gemma-2-9b", None, FleetLayout(), "simulated only where all layers have full attention, and some have sliding window;"),
        ("llama-3.1-8b", DRAFTS, FleetLayout(), "not simulated where tokens are drafted; leave out --kv-policy or --spec"),
        (
            "llama-3.1-8b",
            None,
            APART,
            "not simulated between engines that prefill and engines that decode; leave out --kv-policy, or",
        ),
    ],
)
def test_a_policy_that_is_not_simulated_says_why(
    model: str, drafts: SpeculativeConfig | None, fleet: FleetLayout, reason: str
) -> None:
    """Windows, drafts and engines apart by role: the reason names the model, the flags and which of these it is."""
    settings = {"kv_policy": (KVPolicy("snapkv", 0.2),), "speculative_config": (drafts,), "async_scheduling": (drafts is None,)}
    (candidate,) = combine([find_model(model)], ["h200"], settings, fleets=(fleet,))
    found = evaluate(candidate, parse_workload("constant:rate=1,requests=2,prompt=1000,output=2"), 1.0)
    assert isinstance(found, str)
    assert found.startswith(f"--kv-policy: {model}: snapkv at 0.2 is {reason}")
