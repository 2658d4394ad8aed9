"""Price sheets: what they refuse, and what they say of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.latency import LinearLatency, SheetBackend
from dooly.prices import AttentionPrice, Forest, PriceSheet, price_batches

NONE = np.empty((1, 0))
FORMULA = PriceSheet(np.zeros(6), NONE, NONE)
CUTS = Forest(np.array([1]), np.array([2]), np.array([2.0]), np.array([0.0, np.log(2)]), 0.0)
"""Twice the roofline of more than two requests."""
ATTENTION = AttentionPrice(3, 0, (CUTS, CUTS), 4, 2, 8, 2.0, 10, 1e12, 1e12, 2000.0, 500.0, 100.0)


def test_a_formula_counts_each_part() -> None:
    """Two decodes behind 10 and 20 tokens and a new prompt of 3: 5 tokens, 3 requests, 1 new, 30 cached, 11 + 21 + 6 pairs."""
    latency = LinearLatency(
        1e6,
        per_token_ns=10_000,
        per_request_ns=1_000,
        per_new_request_ns=100,
        per_cached_token_ns=1e-1,
        per_query_key_pair_ns=1e-2,
    )
    assert latency.step_ns(Batch((1, 1, 3), (10, 20, 0))) == 1_053_103  # and 3 + 0.38
    alone = [latency.step_ns(Batch((1, 1), contexts)) for contexts in ((10, 20), (11, 21))]
    assert latency.decode_run_ns(np.array([10, 20]), 2).tolist() == alone
    assert isinstance(latency, SheetBackend)


@pytest.mark.parametrize("parts", [{"step_ns": -1.0}, {"step_ns": 1.0, "per_token_ns": np.inf}])
def test_impossible_formulas_are_refused(parts: dict[str, float]) -> None:
    """Time neither runs backwards nor takes for ever."""
    with pytest.raises(InvalidInputError, match="LinearLatency: all parts must be finite"):
        LinearLatency(**parts)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"per_ns": np.zeros(5)}, r"per_ns must have shape \(6,\), got \(5,\)"),
        ({"requests_ns": np.empty((2, 0))}, "a row a source"),
        ({"tokens_ns": np.zeros((1, 4)), "max_num_tokens": 4}, "tokens_ns ends at 3, and its limit is 4"),
        ({"requests_ns": np.zeros((1, 4))}, "requests_ns ends at 3"),
        ({"attention": (replace(ATTENTION, source=1),)}, r"must count to a source of 0\.\.0"),
        ({"attention": (replace(ATTENTION, forests=()),)}, "by one forest or two"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], rule: str) -> None:
    """Before a compiled loop reads beyond an array."""
    with pytest.raises(InvalidInputError, match=rule):
        replace(FORMULA, **changes)


def test_tables_and_attention_count_to_their_sources() -> None:
    """Two sources: tables of both, and attention, thrice, that counts to the second; the shared part comes off once a run."""
    tables = {"tokens_ns": np.array([[0.0, 5, 6, 7, 8, 9]] * 2), "max_num_tokens": 5}
    attention = (replace(ATTENTION, source=1),)
    sheet = PriceSheet(np.zeros(6), requests_ns=np.zeros((2, 6)), max_num_reqs=5, attention=attention, **tables)
    steps_ns, priced_ns = price_batches(sheet, np.array([[1, 4, 0]]), np.array([[9, 0, 0]]), np.array([1]))
    per_token = 2 * 2 * 8 * 2
    traffic = (per_token * 11 + 128, per_token * 8 + 128 * 4)
    decodes, prefills = (2000 + 1e-3 * max(128 * 10, moved) for moved in traffic)
    once = decodes + 2 * prefills - 500 + 100  # the prompt's four queries exceed two
    assert priced_ns.tolist() == [pytest.approx([9.0, 9 + 3 * once, 0.0])]
    assert steps_ns.tolist() == [round(18 + 3 * once)]


def _forest(rng: np.random.Generator, num_features: int) -> Forest:
    """Make one of 20 trees of up to four questions."""
    num_trees = np.array([5, 5, 0, 10])
    num_questions, num_leaves = int(num_trees @ [1, 2, 3, 4]), int(num_trees @ [2, 4, 8, 16])
    feature = rng.integers(0, num_features, num_questions)
    return Forest(num_trees, feature, 10 ** rng.uniform(0, 5, num_questions), rng.normal(size=num_leaves), 0.1)


@pytest.mark.parametrize("num_forests", [1, 2])
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), num_steps=st.sampled_from([8, 40, 300]))
def test_many_steps_cost_what_each_does_alone(num_forests: int, seed: int, num_steps: int) -> None:
    """To the last bit: decodes, prompts, and both, by one forest over all of them or by two."""
    rng = np.random.default_rng(seed)
    forests = tuple(_forest(rng, 13 if num_forests == 1 else 7) for _ in range(num_forests))
    attention = (replace(ATTENTION, forests=forests), replace(ATTENTION, source=1, forests=forests[::-1], num_runs=2))
    sheet = PriceSheet(np.full(6, 3.0), NONE.repeat(2, 0), NONE.repeat(2, 0), attention=attention, reach=(500.0, 900.0, np.inf))
    new = rng.choice([0, 1, 1, 30], (num_steps, 5))
    new[:, 0], new[0] = np.maximum(new[:, 0], 1), [30, 0, 0, 0, 0]
    computed, fresh = rng.integers(0, 900, new.shape) * (new > 0), rng.integers(0, 3, num_steps)
    steps_ns, priced_ns = price_batches(sheet, new, computed, fresh)
    alone = [price_batches(sheet, new[[step]], computed[[step]], fresh[[step]]) for step in range(num_steps)]
    assert steps_ns.tolist() == [one_ns.item() for one_ns, _ in alone]
    assert priced_ns.tolist() == [own.tolist()[0] for _, own in alone]


def test_beyond_its_reach_a_price_is_extrapolated() -> None:
    """The last place holds the steps that decode over more than ten positions."""
    sheet = replace(FORMULA, per_ns=np.array([7.0, 0, 0, 0, 0, 0]), reach=(10.0, np.inf, np.inf))
    steps_ns, priced_ns = price_batches(sheet, np.ones((3, 1), np.int64), np.array([[8], [9], [10]]), np.zeros(3, np.int64))
    assert (steps_ns.tolist(), priced_ns.tolist()) == ([7, 7, 7], [[7.0, 0.0], [7.0, 0.0], [7.0, 7.0]])
