"""One simulation of a search."""

from __future__ import annotations

import pytest

from dooly import find_model
from dooly.kv_policy import KVPolicy
from dooly.searching import Evaluation, combine, evaluate
from dooly.simulation import parse_workload


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


def test_a_policy_that_changes_nothing_is_refused() -> None:
    """A candidate whose policy has no room in any prompt says so, as a simulation does, and is not told to be as good as none."""
    (candidate,) = combine([find_model("llama-3.1-8b")], ["h200"], {"kv_policy": (KVPolicy("snapkv", 0.1),)})
    found = evaluate(candidate, parse_workload("constant:rate=1,requests=2,prompt=100,output=1"), 1.0)
    assert isinstance(found, str)
    assert "--kv-budget: snapkv at 0.1 changes nothing for prompts of 100 tokens at most" in found
