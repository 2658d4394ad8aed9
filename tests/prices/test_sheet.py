"""Price sheets: what they refuse, and what they say of a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

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


def test_beyond_its_reach_a_price_is_extrapolated() -> None:
    """The last place holds the steps that decode over more than ten positions."""
    sheet = replace(FORMULA, per_ns=np.array([7.0, 0, 0, 0, 0, 0]), reach=(10.0, np.inf, np.inf))
    steps_ns, priced_ns = price_batches(sheet, np.ones((3, 1), np.int64), np.array([[8], [9], [10]]), np.zeros(3, np.int64))
    assert (steps_ns.tolist(), priced_ns.tolist()) == ([7, 7, 7], [[7.0, 0.0], [7.0, 0.0], [7.0, 7.0]])
