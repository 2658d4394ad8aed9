"""One simulation of a search."""

from __future__ import annotations

import pytest

from dooly import find_model
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
