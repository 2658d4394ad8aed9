"""Kept sets equal a brute-force reference that goes token by token in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from dooly.errors import InvalidInputError  # noqa: E402 - after the skip
from dooly.kv import (  # noqa: E402
    POLICIES,
    CriticalAdaKV,
    CriticalKV,
    LaProx,
    LayerInputs,
    Policy,
    Scope,
    find_policy,
    kept_indices,
    select,
)
from dooly.kv._allocation import keep_counts, keep_top  # noqa: E402
from tests.kv.reference import WINDOW, Drawn, Reference, make_layers  # noqa: E402

NAMES = [name for name, policy in POLICIES.items() if isinstance(policy, Policy)]


def small(name: str) -> Policy:
    """Return a policy with the tests' window."""
    policy = find_policy(name)
    assert isinstance(policy, Policy)
    return replace(policy, window_size=WINDOW)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_layers=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    num_tokens=st.integers(WINDOW + 6, 22),  # with fewer, all neighbourhoods are one, and equal but for rounding
    data=st.data(),
)
def test_kept_sets_match_brute_force(  # noqa: PLR0913, PLR0917 - what Hypothesis draws
    name: str, seed: int, num_layers: int, num_kv_heads: int, group: int, num_tokens: int, data: st.DataObject
) -> None:
    """Every policy keeps what loops over single tokens find, for any layers, heads, groups and budget."""
    count = data.draw(st.integers(0, num_tokens - WINDOW - 1))
    layers = make_layers(seed, num_layers, num_kv_heads, group, num_tokens)
    kept = select(small(name), layers, (count + WINDOW + 0.5) / num_tokens)
    assert kept[..., -WINDOW:].all()
    found = {tuple(at) for at in kept[..., :-WINDOW].nonzero().tolist()}
    assert found == getattr(Reference(layers, count), name.replace("-", "_"))()


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=None)
@given(
    num_layers=st.integers(1, 3),
    num_kv_heads=st.integers(1, 3),
    num_past=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_equal_scores_match_brute_force(  # noqa: PLR0913, PLR0917 - what Hypothesis draws
    name: str, num_layers: int, num_kv_heads: int, num_past: int, seed: int, data: st.DataObject
) -> None:
    """Where most scores are equal, and what is protected equals what is not, every policy keeps what loops find."""
    count = data.draw(st.integers(0, num_past))
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (num_layers, 2, num_kv_heads, num_past), generator=draw).double()
    kept = small(name).keep(scores, count)
    assert {tuple(at) for at in kept.nonzero().tolist()} == getattr(Drawn(scores, count), name.replace("-", "_"))()


def test_what_is_added_to_attention_is_a_setting() -> None:
    """Where it outweighs attention the norms alone order tokens; without it, a token that nothing attends to counts nothing."""
    (layer,) = make_layers(0, 1, 1, 2, 30)
    norms = layer.projected_norms(1).mean(1)[0]
    kept = CriticalKV(WINDOW, first_stage=0, epsilon=1e9)
    assert torch.equal(select(kept, [layer], 0.5)[0, 0, :26].nonzero().flatten(), norms.topk(11).indices.sort().values)
    plain = CriticalKV(WINDOW, epsilon=0).score(layer)
    torch.testing.assert_close(plain[1], plain[0] * norms)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_budget_keeps_all_and_a_share_keeps_its_share(name: str) -> None:
    """At budget 1 nothing is dropped; below, the mean over heads is the budget's share rounded down."""
    layers = make_layers(0, 2, 2, 2, 30)
    assert select(small(name), layers, 1).all()
    kept = select(small(name), layers, 0.3)
    assert int(kept.sum()) == 9 * 4
    assert sum(len(head) for layer in kept_indices(kept) for head in layer) == 9 * 4


@pytest.mark.parametrize("budget", [0, -0.1, 1.01, math.nan])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    """A budget is above 0 and at most 1."""
    with pytest.raises(InvalidInputError, match=r"^budget: .* does not lie above 0 and up to 1"):
        select(small("snapkv"), make_layers(0, 1, 1, 1, 30), budget)


def test_a_budget_below_the_window_is_refused() -> None:
    """The window is always kept, so that a budget must have room for it; the message says which does."""
    with pytest.raises(InvalidInputError, match=r"0.1 of 30 tokens are 3, fewer than the window of 4 .* at least 0.133"):
        select(small("snapkv"), make_layers(0, 1, 1, 1, 30), 0.1)


def test_policies_by_name() -> None:
    """Names go by any case; an unknown one is refused with those that there are."""
    with pytest.raises(InvalidInputError, match=r"^policy: 'h2o' is not one of snapkv, adakv"):
        find_policy("h2o")
    assert find_policy("Ada-KV") is POLICIES["adakv"]


@pytest.mark.parametrize(("scope", "num_sets"), [(Scope.HEAD, 4), (Scope.LAYER, 2), (Scope.MODEL, 1)])
def test_scopes_share_budgets(scope: Scope, num_sets: int) -> None:
    """Heads, layers or the whole model have equal budgets; within, heads differ."""
    kept = select(LaProx(WINDOW, scope), make_layers(3, 2, 2, 2, 60), 0.5).sum(-1)
    sums = kept.reshape(num_sets, -1).sum(-1)
    assert (sums == 30 * 4 // num_sets).all()
    assert scope is Scope.HEAD or len(kept.unique()) > 1


def test_ties_have_an_order() -> None:
    """Of equal scores, the lower layer's, then the lower head's, then the earlier token is kept, in every scope."""
    even = torch.ones(2, 2, 3)
    assert keep_top(even, 1, Scope.HEAD).nonzero().tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert keep_top(even, 1, Scope.LAYER).nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert keep_top(even, 1, Scope.MODEL).nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0]]
    counts = torch.tensor([[0, 2], [3, 1]])
    assert keep_counts(even, counts).nonzero().tolist() == [[0, 1, 0], [0, 1, 1], [1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 1, 0]]


@pytest.mark.parametrize("name", NAMES)
def test_what_has_no_norm_has_an_order(name: str) -> None:
    """Where all values are 0, and where the window attends to itself alone, as many tokens are kept as ever."""
    (layer,) = make_layers(0, 1, 2, 2, 30)
    nothing = replace(layer, values=torch.zeros_like(layer.values))
    inward = replace(layer, keys=torch.cat([layer.queries[::2], layer.keys], 1)[:, -30:].flip(1), queries=1e4 * layer.queries)
    for inputs in (nothing, inward):
        assert int(select(small(name), [inputs], 0.5).sum()) == 15 * 2


def test_products_do_not_overflow_before_they_are_scaled() -> None:
    """Queries and keys of float16 whose products are beyond it, and within it once scaled, have the attention of float64."""
    (layer,) = make_layers(1, 1, 1, 1, 40)
    halves = torch.randint(-8, 9, (1, 40, 1), generator=torch.Generator().manual_seed(2)) / 2  # what float16 tells at 768
    keys = torch.cat([torch.full((1, 40, 3), 256.0), halves], 2)
    wide = replace(layer, queries=torch.full((1, WINDOW, 4), 128.0).double(), keys=keys.double(), scaling=1 / 128)
    narrow = LayerInputs(*(x.half() for x in (wide.queries, wide.keys, wide.values, wide.output_projection)), 1 / 128)
    assert not (narrow.queries @ narrow.keys.transpose(1, 2)).isfinite().any()
    torch.testing.assert_close(narrow.window_attention(), wide.window_attention().float())


def test_scores_that_are_no_numbers_are_refused() -> None:
    """Keys that are not finite have no order."""
    (layer,) = make_layers(0, 1, 2, 2, 30)
    with pytest.raises(InvalidInputError, match="LaProx: queries, keys or values give scores that are no numbers"):
        select(small("laprox"), [replace(layer, keys=layer.keys / 0)], 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": 0}, "window_size 0 is not at least 1"),
        ({"kernel_size": 4}, "kernel_size 4 is not an odd number"),
        ({"safeguard": 1.5}, "safeguard 1.5 does not lie between 0 and 1"),
        ({"first_stage": -1}, "first_stage -1 does not lie between 0 and 1"),
        ({"epsilon": -1}, "epsilon -1 is below 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, float], message: str) -> None:
    """A policy's settings have bounds."""
    with pytest.raises(InvalidInputError, match=message):
        CriticalAdaKV(**changes)
    if {"first_stage", "epsilon"} & changes.keys():
        with pytest.raises(InvalidInputError, match=message):
            CriticalKV(**changes)


def test_inputs_that_do_not_fit_are_refused() -> None:
    """Shapes of one layer belong together, layers are alike, and the window is the policy's."""
    (layer,), (other,) = make_layers(0, 1, 2, 2, 30), make_layers(0, 1, 2, 2, 31)
    with pytest.raises(InvalidInputError, match="do not fit"):
        replace(layer, keys=layer.keys[:, :20])
    with pytest.raises(InvalidInputError, match=r"output projection .* is not"):
        replace(layer, output_projection=layer.output_projection[:1])
    with pytest.raises(InvalidInputError, match="a window of 4 queries is longer than the 3 tokens"):
        replace(layer, keys=layer.keys[:, :3], values=layer.values[:, :3])
    with pytest.raises(InvalidInputError, match="layers have different numbers"):
        select(small("snapkv"), [layer, other], 0.5)
    with pytest.raises(InvalidInputError, match="windows are not the policy's of 32"):
        select(find_policy("snapkv"), [layer], 0.5)
