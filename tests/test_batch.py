from __future__ import annotations

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.errors import InvalidInputError


def test_counts_add_up() -> None:
    """A batch counts its requests and their new tokens."""
    batch = Batch((1, 7, 3), (20, 0, 5), 2)
    assert (batch.num_reqs, batch.num_tokens) == (3, 11)


def test_requests_without_computed_tokens_are_new_by_default() -> None:
    """Where nobody says how many are new, prompts that begin are, and decodes and later chunks are not."""
    assert Batch((1, 7, 3, 1), (20, 0, 5, 0)) == Batch((1, 7, 3, 1), (20, 0, 5, 0), 2)
    assert Batch((7,), (0,), 0).num_new_requests == 0


@pytest.mark.parametrize(
    ("new", "computed", "num_new_requests", "rule"),
    [
        ((), (), 0, "no request"),
        ((1, 2), (3,), 0, "2 num_new_tokens but 1 num_computed_tokens"),
        ((0,), (3,), 0, "num_new_tokens must be at least 1"),
        ((1,), (-1,), 0, "num_computed_tokens at least 0"),
        ((1,), (3,), 2, "num_new_requests 2 is outside 0..1"),
        ((1,), (3,), -1, "num_new_requests -1 is outside 0..1"),
        ((1.0,), (3,), 0, r"num_new_tokens: \(1.0,\) are no whole numbers"),
        ((1,), np.array([0.5]), 0, r"num_computed_tokens: array\(\[0.5\]\) are no whole numbers"),
        ((1,), 3, 0, "num_computed_tokens: 3 are no whole numbers"),
        ((1,), np.ones((1, 2), int), 0, "num_computed_tokens: .* are no whole numbers"),
        ((2**63 - 1,), (0,), 0, f"{2**63 - 1} tokens of one request, new or computed; give at most {2**30}"),
        ((1, 1), (3, 10**30), 0, f"{10**30} tokens of one request"),
        ((1,), (3,), 0.5, r"num_new_requests: \(0.5,\) are no whole numbers"),
    ],
)
def test_an_impossible_batch_is_refused(
    new: tuple[int, ...], computed: tuple[int, ...], num_new_requests: int, rule: str
) -> None:
    """Each rule that a batch breaks is named in one line."""
    with pytest.raises(InvalidInputError, match=rule) as caught:
        Batch(new, computed, num_new_requests)
    assert "\n" not in str(caught.value)


def test_arrays_and_lists_are_kept_as_tuples_of_integers() -> None:
    """A batch of numpy's integers is the batch of Python's, and can be hashed as that."""
    of_arrays = Batch(np.ones(2, int), np.full(2, 10), np.int64(1), np.zeros(2, int))
    assert of_arrays == Batch([1, 1], [10, 10], 1, [0, 0]) == Batch((1, 1), (10, 10), 1, (0, 0))
    assert hash(of_arrays) == hash(Batch((1, 1), (10, 10), 1, (0, 0)))
    assert {type(count) for count in (*of_arrays.num_computed_tokens, of_arrays.num_new_requests)} == {int}


@pytest.mark.parametrize(
    ("attended", "rule"),
    [
        ((6554,) * 2, r"\(6554, 6554\) are no shares of the layers"),
        (((1.0, 6554),), "are no shares of the layers"),
        (((0.5, Batch((2,), (9,))),), "adding up to 1"),
        (((1.0, Batch((3,), (9,))),), "must see the 2 tokens of the step"),
    ],
)
def test_what_attention_cannot_see_is_refused(attended: tuple[tuple[float, Batch], ...], rule: str) -> None:
    """Views of attention are shares of all layers, each with a batch of the step's own tokens; one line says so."""
    with pytest.raises(InvalidInputError, match=rule) as caught:
        Batch((1, 1), (10, 10), attended=attended)
    assert "\n" not in str(caught.value)


def test_drafts_are_sampled_too() -> None:
    """A step samples at the last place of each request and at each draft."""
    assert Batch((4, 7, 1), (20, 0, 5), 1, (3, 0, 0)).num_sampled == 6
    assert Batch((1, 7, 1), (20, 0, 5)).num_sampled == 3


@pytest.mark.parametrize("drafts", [(3,), (4, 0), (-1, 0)])
def test_impossible_drafts_are_refused(drafts: tuple[int, ...]) -> None:
    """Each request has a count, and a token ahead of its drafts."""
    with pytest.raises(InvalidInputError, match="num_draft_tokens"):
        Batch((4, 7), (20, 0), 0, drafts)
