"""The policies as engines are told of them, beside the policies themselves."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dooly.errors import InvalidInputError
from dooly.kv import POLICIES, CritiPrefill, Policy
from dooly.kv_policy import KEPT_BY, WINDOW_SIZE, KVPolicy, Scope, Term, share_of

SCOPES = {"AdaKV": Scope.LAYER, "CriticalAdaKV": Scope.LAYER, "SnapKV": Scope.HEAD, "CriticalKV": Scope.HEAD}


def test_names_scopes_and_windows_are_those_of_the_policies() -> None:
    """Each policy that computes is one that an engine can be told of, with its window and with who shares its budget."""
    assert list(KEPT_BY) == list(POLICIES)
    for name, policy in POLICIES.items():
        if isinstance(policy, Policy):
            assert policy.window_size == WINDOW_SIZE
            assert KEPT_BY[name] == getattr(policy, "scope", None) or SCOPES[type(policy).__name__]


@given(st.integers(1, 200_000), st.sampled_from([0.05, 0.1, 0.2, 0.5, 0.9]))
def test_as_many_tokens_are_kept_as_the_policies_keep(num_tokens: int, budget: float) -> None:
    """The share of a prompt is that of `Policy.num_kept`; where that has no room for the window, all are kept."""
    found = KVPolicy("laprox", budget).num_kept(num_tokens)
    policy = POLICIES["laprox"]
    assert isinstance(policy, Policy)
    try:
        assert found == policy.num_kept(num_tokens, budget)
    except InvalidInputError:
        assert found == num_tokens


@given(st.integers(1, 40_000), st.sampled_from([0.1, 0.2, 0.95, 1.0]), st.integers(1, 9000))
@example(4400, 0.2, 9000)
def test_chunks_of_a_sparse_prefill_make_up_its_pairs(num_tokens: int, budget: float, chunk: int) -> None:
    """However a prompt is cut into steps, its queries are all there, and pairs are as many as `CritiPrefill.num_pairs` says.

    The policy acts where these are fewer than all.
    """
    policy, whole = KVPolicy("critiprefill", budget), POLICIES["critiprefill"]
    assert isinstance(whole, CritiPrefill)
    pairs = 0
    for start in range(0, num_tokens, chunk):
        stop = min(start + chunk, num_tokens)
        seen = policy.attended(num_tokens, start, stop)
        assert sum(queries for queries, _ in seen) == stop - start
        pairs += sum(queries * keys + queries * (queries + 1) // 2 for queries, keys in seen)
    blocks = share_of(num_tokens, budget) // whole.block_size
    assert pairs == (whole.num_pairs(num_tokens, blocks) if blocks else num_tokens * (num_tokens + 1) // 2)
    assert policy.acts_on(num_tokens) == (pairs < num_tokens * (num_tokens + 1) // 2)


def test_terms_come_one_by_one() -> None:
    """The first of the policies changes nothing, the last all; at budget 1 nothing changes."""
    for name, number in (("snapkv", 4), ("critiprefill", 2)):
        policy = KVPolicy(name, 0.2)
        rows = policy.one_by_one()
        assert [sum(row.changes(term) for term in Term) for row in rows] == [*range(number + 1)]
        assert not any(KVPolicy(name, 1).changes(term) for term in Term)


@pytest.mark.parametrize(
    ("spelt", "name"),
    [("SnapKV", "snapkv"), ("Ada-KV", "adakv"), ("Critical-Ada-KV", "critical-adakv"), ("layerDefensiveKV", "layer-defensivekv")],
)
def test_names_go_by_any_case(spelt: str, name: str) -> None:
    """Names as papers write them are those of the policies."""
    assert KVPolicy(spelt, 0.2) == KVPolicy(name, 0.2)


@pytest.mark.parametrize(
    ("name", "budget", "terms", "message"),
    [
        ("snap", 0.2, None, "^KVPolicy: name: 'snap' is not one of snapkv, adakv"),
        (None, 0.2, None, "^KVPolicy: name: None is not one of snapkv"),
        ("snapkv", 0, None, "^KVPolicy: budget: 0 does not lie above 0 and up to 1"),
        ("snapkv", 1.5, None, "^KVPolicy: budget: 1.5 does not lie above 0"),
        ("snapkv", True, None, "^KVPolicy: budget: True is no number"),
        ("snapkv", "0.2", None, "^KVPolicy: budget: '0.2' is no number; give the share"),
        ("snapkv", 0.2, (Term.PREFILL,), "terms of snapkv are no prefix caching, selection"),
    ],
)
def test_bad_policies_are_refused(name: str, budget: float, terms: tuple[Term, ...] | None, message: str) -> None:
    """A wrong name, budget or term is named in one line."""
    with pytest.raises(InvalidInputError, match=message):
        KVPolicy(name, budget, terms)
