"""Speculative decoding: its settings."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.errors import InvalidInputError
from dooly.simulation import Request
from dooly.simulation._acceptance import Acceptance
from dooly.speculation import SpeculativeConfig

NGRAM = '{"method": "ngram", "num_speculative_tokens": 3}'


def test_one_rate_is_that_of_each_draft_where_those_before_it_are_accepted() -> None:
    """Leviathan's alpha becomes rates of all drafts proposed, each a power of it."""
    config = SpeculativeConfig.parse(NGRAM, "0.5")
    assert config.acceptance_rates == (0.5, 0.25, 0.125)
    assert config.acceptance_length == 1.875


def test_rates_by_position_are_taken_as_they_are() -> None:
    """Several numbers are the acceptance by position, by the flag or as vLLM is told."""
    rates = '{"method": "ngram", "num_speculative_tokens": 3, "synthetic_acceptance_rates": [0.8, 0.6, 0.4]}'
    assert SpeculativeConfig.parse(NGRAM, "0.8,0.6,0.4") == SpeculativeConfig.parse(rates)


def test_a_mean_length_is_spread_as_vllm_spreads_it() -> None:
    """All steps bring about as many tokens, but for the fraction."""
    text = '{"method": "mtp", "num_speculative_tokens": 3, "synthetic_acceptance_length": 2.5}'
    assert SpeculativeConfig.parse(text, draft_cost=0.1).acceptance_rates == (1.0, 0.5, 0.0)


def test_an_mtp_head_goes_by_one_name() -> None:
    """The names that vLLM deprecates mean `mtp`."""
    text = '{"method": "deepseek_mtp", "num_speculative_tokens": 1}'
    assert SpeculativeConfig.parse(text, "0.8", 0.1).method == "mtp"


def test_it_is_written_as_vllm_takes_it() -> None:
    """A command for the engine says what is drafted, and reads back."""
    config = SpeculativeConfig("ngram", 3, (0.8, 0.6, 0.4))
    assert str(config) == NGRAM
    assert SpeculativeConfig.parse(str(config), "0.8,0.6,0.4") == config


@pytest.mark.parametrize(
    ("text", "rate", "cost", "message"),
    [
        ("{", "0.5", None, "is no JSON"),
        ("[1]", "0.5", None, "is no JSON object"),
        ('{"method": "suffix", "num_speculative_tokens": 3}', "0.5", None, "method 'suffix' cannot be simulated"),
        ('{"method": "ngram"}', "0.5", None, "num_speculative_tokens must be a whole number"),
        (NGRAM[:-1] + ', "num_speculative_tokens_per_batch_size": []}', "0.5", None, "is not simulated"),
        (NGRAM, None, None, "say once how many are accepted"),
        (NGRAM[:-1] + ', "synthetic_acceptance_length": 2}', "0.5", None, "say once how many are accepted"),
        (NGRAM[:-1] + ', "synthetic_acceptance_length": 5}', None, None, r"must lie in 1\.\.4"),
        (NGRAM, "many", None, "must be numbers from 0 to 1"),
        (NGRAM, "0.5,0.6,0.1", None, "never grow"),
        (NGRAM, "0.5,0.4", None, "must be 3 numbers"),
        (NGRAM, "1.5", None, "from 0 to 1"),
        (NGRAM, "0.5", 0.1, "be left out for ngram"),
        (NGRAM.replace("ngram", "eagle3"), "0.5", None, "eagle3 drafts by a model of its own, which is not free"),
        (NGRAM.replace("ngram", "eagle3"), "0.5", 1.0, "from 0 to below 1"),
    ],
)
def test_what_cannot_be_simulated_is_refused(text: str, rate: str | None, cost: float | None, message: str) -> None:
    """A method, key or number that the schedule or the price would be wrong with is named."""
    with pytest.raises(InvalidInputError, match=message):
        SpeculativeConfig.parse(text, rate, cost)


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, True])
def test_a_seed_that_is_none_is_refused(seed: float) -> None:
    """When the settings are made, not when drafts are drawn; the last seed there is draws."""
    with pytest.raises(InvalidInputError, match=r"SpeculativeConfig: seed must be a whole number of 0\.\.2\*\*64-1"):
        SpeculativeConfig("ngram", 1, (0.5,), seed=seed)  # type: ignore[arg-type]
    last = SpeculativeConfig("ngram", 1, (1.0,), seed=(1 << 64) - 1)
    assert Acceptance([Request(0, 0, 1, 1)], last).of(np.array([0]), np.array([1])).tolist() == [1]
