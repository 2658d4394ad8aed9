from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dooly.batch import Batch
from dooly.catalog import measurement_batches
from dooly.engines import ServingConfig
from dooly.predict import BatchArrays
from dooly.predict._domain import Reach

servings = st.builds(
    ServingConfig,
    max_model_len=st.integers(1, 40_000),
    max_num_batched_tokens=st.integers(1, 20_000),
    max_num_seqs=st.integers(1, 300),
)
useful_servings = st.builds(
    ServingConfig,
    max_model_len=st.integers(192, 40_000),
    max_num_batched_tokens=st.integers(64, 20_000),
    max_num_seqs=st.integers(4, 64),
)
"""Limits that leave room for each kind of batch."""


def _decodes(batch: Batch) -> int:
    return batch.num_reqs - batch.num_new_requests


@given(servings)
def test_every_batch_is_within_the_engines_limits(serving: ServingConfig) -> None:
    """No batch has more requests, tokens or positions than the engine takes; each decode has a context."""
    for batch in measurement_batches(serving):
        assert batch.num_reqs <= serving.max_num_seqs
        assert batch.num_tokens <= serving.max_num_batched_tokens
        for place, (new, computed) in enumerate(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True)):
            assert new + computed < serving.max_model_len
            assert place >= _decodes(batch) or (new == 1 and computed >= 1)


@given(servings)
def test_no_batch_comes_twice(serving: ServingConfig) -> None:
    """The batches are distinct."""
    batches = measurement_batches(serving)
    assert len(set(batches)) == len(batches)


@given(useful_servings)
def test_every_kind_of_batch_is_there(serving: ServingConfig) -> None:
    """Prefills, prefills over a context, decodes, decodes of unequal contexts, and mixed batches are measured."""
    batches = measurement_batches(serving)
    prefills = [b for b in batches if _decodes(b) == 0]
    decodes = [b for b in batches if b.num_new_requests == 0]
    assert any(b.num_computed_tokens == (0,) for b in prefills)
    assert any(b.num_computed_tokens[0] > 0 for b in prefills)
    assert any(len(set(b.num_computed_tokens)) > 1 for b in decodes)
    assert any(0 < _decodes(b) < b.num_reqs for b in batches)


@given(useful_servings)
def test_the_limits_themselves_are_measured(serving: ServingConfig) -> None:
    """What the scheduler may fill, the grid fills: the token budget, the number of requests, the length of a sequence."""
    batches = measurement_batches(serving)
    most = min(serving.max_num_batched_tokens, serving.max_num_seqs * (serving.max_model_len - 1))
    assert max(b.num_tokens for b in batches) == most
    assert max(b.num_reqs for b in batches) == serving.max_num_seqs
    longest = max(b.num_new_tokens[0] + b.num_computed_tokens[0] for b in batches if b.num_new_requests == 0)
    assert longest == serving.max_model_len - 64


@given(useful_servings, st.data())
def test_whatever_the_scheduler_fills_attention_was_measured_as_far(serving: ServingConfig, data: st.DataObject) -> None:
    """Steps of decodes, of a chunk anywhere in a prompt, or of prompts one after the other read no more than measured ones."""
    reach = Reach.of([BatchArrays.of(measurement_batches(serving))])
    assert reach is not None
    budget, longest = serving.max_num_batched_tokens, serving.max_model_len - 1
    chunk = data.draw(st.integers(2, min(budget, longest)))
    prompts = data.draw(st.lists(st.integers(2, longest), min_size=1, max_size=serving.max_num_seqs))
    fitting = [n for place, n in enumerate(prompts) if sum(prompts[: place + 1]) <= budget] or [chunk]
    for batch in (Batch((chunk,), (longest - chunk,), 1), Batch(tuple(fitting), (0,) * len(fitting), len(fitting))):
        assert BatchArrays.of([batch]).attention(None).prefill_pairs[0] <= reach.prefill_pairs
    num_decodes = min(serving.max_num_seqs, budget)
    decodes = Batch((1,) * num_decodes, (longest,) * num_decodes)
    assert BatchArrays.of([decodes]).attention(None).decode_kv_tokens[0] <= reach.decode_kv_tokens


@given(useful_servings)
def test_long_decodes_run_beside_a_chunk_of_a_long_prompt(serving: ServingConfig) -> None:
    """All but one of the requests decode at the end of their sequences, beside one that prefills at the end of its prompt."""
    most = serving.max_num_seqs - 1
    last = serving.max_model_len - 64
    mixed = [b for b in measurement_batches(serving) if b.num_new_requests == 1 and _decodes(b) == most]
    ends = [[n + c for n, c in zip(b.num_new_tokens, b.num_computed_tokens, strict=True)] for b in mixed]
    assert serving.max_num_batched_tokens <= most or [last] * serving.max_num_seqs in ends


def test_the_default_limits_take_a_batch_of_each_size() -> None:
    """At vLLM's defaults the grid has single prefills up to the longest prompt, and decodes of 1 to 64 requests."""
    batches = measurement_batches(ServingConfig())
    assert {1, 2, 4, 8, 16, 32, 64} <= {b.num_reqs for b in batches if b.num_new_requests == 0}
    assert {8, 128, 1024, 2047} <= {b.num_tokens for b in batches if b.num_reqs == 1}
