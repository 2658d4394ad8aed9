from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.batch import Batch
from dooly.predict import BatchArrays
from dooly.predict._features import AttentionWork

requests = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=6)


def _batch(pairs: list[tuple[int, int]]) -> Batch:
    new, computed = zip(*pairs, strict=True)
    return Batch(new, computed)


def _work(batch: Batch, window: int | None) -> dict[str, float]:
    work = AttentionWork.of(BatchArrays.of([batch]), window)
    return {name: float(getattr(work, name)[0]) for name in (*AttentionWork.__slots__, "query_key_pairs", "kv_tokens")}


def test_full_attention_by_hand() -> None:
    """A decode over 9 positions, and a prefill of 3 over 2: queries see 3, 4 and 5 positions."""
    assert _work(Batch((1, 3), (9, 2)), None) == {
        "decode_kv_tokens": 10,
        "prefill_pairs": 3 + 4 + 5,
        "prefill_kv_tokens": 5,
        "prefill_tokens": 3,
        "num_decodes": 1,
        "num_prefills": 1,
        "longest": 10,
        "decode_longest": 10,
        "decode_kv_squares": 100,
        "query_key_pairs": 22,
        "kv_tokens": 15,
    }


def test_a_sliding_window_by_hand() -> None:
    """With a window of 4 the decode reads 4 positions; the prefill's queries see 3, 4 and 4 of 5 positions."""
    assert _work(Batch((1, 3), (9, 2)), 4) == {
        "decode_kv_tokens": 4,
        "prefill_pairs": 3 + 4 + 4,
        "prefill_kv_tokens": 5,
        "prefill_tokens": 3,
        "num_decodes": 1,
        "num_prefills": 1,
        "longest": 5,
        "decode_longest": 4,
        "decode_kv_squares": 16,
        "query_key_pairs": 15,
        "kv_tokens": 9,
    }


@given(requests, st.integers(1, 50))
def test_the_window_is_what_a_mask_says(pairs: list[tuple[int, int]], window: int) -> None:
    """Pairs and positions read equal a count over the mask of causal attention with a window."""
    num_pairs = num_read = 0
    for new, computed in pairs:
        queries, keys = np.arange(computed, computed + new)[:, None], np.arange(computed + new)[None, :]
        mask = (keys <= queries) & (keys > queries - window)
        num_pairs += int(mask.sum())
        num_read += int(mask.any(axis=0).sum())
    work = _work(_batch(pairs), window)
    assert (work["query_key_pairs"], work["kv_tokens"]) == (num_pairs, num_read)


@given(requests)
def test_a_window_beyond_every_context_is_full_attention(pairs: list[tuple[int, int]]) -> None:
    """A window that no request reaches changes nothing."""
    assert _work(_batch(pairs), 100) == _work(_batch(pairs), None)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(1, 12), st.sampled_from([None, 1, 64]))
def test_a_decode_run_is_its_steps(contexts: list[int], num_steps: int, window: int | None) -> None:
    """`decode_run` has the arrays, and so the attention work, of each step's batch."""
    run = BatchArrays.decode_run(np.array(contexts), num_steps)
    steps = [Batch((1,) * len(contexts), tuple(c + i for c in contexts)) for i in range(num_steps)]
    each = BatchArrays.of(steps)
    for name in ("new", "computed", "num_new_requests"):
        np.testing.assert_array_equal(getattr(run, name), getattr(each, name))
    np.testing.assert_array_equal(AttentionWork.of(run, window).columns(), AttentionWork.of(each, window).columns())


@given(st.lists(requests, min_size=1, max_size=4))
def test_batches_beside_each_other_do_not_mix(many: list[list[tuple[int, int]]]) -> None:
    """A batch has the same counts and work alone and beside wider batches."""
    batches = [_batch(pairs) for pairs in many]
    together = BatchArrays.of(batches)
    assert together.num_tokens.tolist() == [b.num_tokens for b in batches]
    assert together.num_reqs.tolist() == [b.num_reqs for b in batches]
    columns = AttentionWork.of(together, 16).columns()
    for row, batch in enumerate(batches):
        np.testing.assert_array_equal(columns[row], AttentionWork.of(BatchArrays.of([batch]), 16).columns()[0])


@pytest.mark.parametrize("window", [None, 0, -1])
def test_no_window_reads_everything(window: int | None) -> None:
    """None, 0 and -1, as engines write it, mean full attention."""
    assert _work(Batch((1,), (99,)), window)["decode_kv_tokens"] == 100


def test_drafts_are_a_chunk_or_read_keys_once() -> None:
    """Four queries behind 9 positions: a chunk of a prompt, or one decode over 13 positions; a prompt beside them stays one."""
    batches = BatchArrays.of([Batch((4, 3), (9, 2), 0, (3, 0)), Batch((1,), (7,))])
    chunk, decode = batches.attention(None), batches.attention(None, verifies_as_decodes=True)
    assert [float(n) for n in (chunk.num_prefills[0], chunk.num_decodes[0], chunk.prefill_pairs[0])] == [2, 0, 46 + 12]
    assert [float(n) for n in (decode.num_prefills[0], decode.num_decodes[0], decode.decode_kv_tokens[0])] == [1, 1, 13]
    assert float(decode.prefill_pairs[0]) == 12
    assert chunk.decode_kv_tokens[1] == decode.decode_kv_tokens[1] == 8
    assert batches.num_sampled.tolist() == [5, 1]
