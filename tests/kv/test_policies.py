"""Kept sets equal a brute-force reference that goes token by token in plain Python."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterable

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

WINDOW = 4


def make_layers(seed: int, num_layers: int, num_kv_heads: int, group: int, num_tokens: int) -> list[LayerInputs]:
    """Return layers of normal numbers in float64, with sharp attention."""
    draw = torch.Generator().manual_seed(seed)
    heads, size, hidden = num_kv_heads * group, 4, 6

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [
        LayerInputs(
            2 * normal(heads, WINDOW, size),
            normal(num_kv_heads, num_tokens, size),
            normal(num_kv_heads, num_tokens, size),
            normal(heads, size, hidden),
            size**-0.5,
        )
        for _ in range(num_layers)
    ]


def dot(left: Iterable[float], right: Iterable[float]) -> float:
    """Return the sum of products."""
    return sum(x * y for x, y in zip(left, right, strict=True))


def attention_rows(layer: LayerInputs) -> list[list[list[float]]]:
    """Return the attention of each head's window queries to all tokens."""
    queries, keys = layer.queries.tolist(), layer.keys.tolist()
    group, num_tokens = len(queries) // len(keys), len(keys[0])
    heads = []
    for head, rows in enumerate(queries):
        found = []
        for place, query in enumerate(rows):
            seen = num_tokens - len(rows) + place + 1
            logits = [layer.scaling * dot(query, key) for key in keys[head // group][:seen]]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            found.append([weight / sum(weights) for weight in weights] + [0.0] * (num_tokens - seen))
        heads.append(found)
    return heads


def value_norm(layer: LayerInputs, head: int, token: int, order: int) -> float:
    """Return the norm of a token's value row after a head's output projection."""
    group = layer.queries.shape[0] // layer.keys.shape[0]
    value, projection = layer.values[head // group, token].tolist(), layer.output_projection[head].tolist()
    row = [dot(value, column) for column in zip(*projection, strict=True)]
    return sum(map(abs, row)) if order == 1 else math.sqrt(sum(x * x for x in row))


def smooth(row: list[float], size: int) -> list[float]:
    """Return the mean over neighbours, zeros beyond the ends."""
    half = size // 2
    return [sum(row[max(0, t - half) : t + half + 1]) / size for t in range(len(row))]


Tokens = set[tuple[int, int, int]]
Scores = dict[tuple[int, int, int], float]


def best(scores: Scores, count: int, first: Tokens = frozenset()) -> Tokens:  # type: ignore[assignment]
    """Return the tokens (layer, head, token) of the highest scores: `first` before all, then the lowest of equal ones."""
    return set(sorted(scores, key=lambda at: (at not in first, 0 if at in first else -scores[at], at))[:count])


def by_head(scores: Scores) -> list[Scores]:
    """Return the scores of each head apart."""
    return [{at: s for at, s in scores.items() if at[:2] == head} for head in sorted({at[:2] for at in scores})]


def by_layer(scores: Scores) -> list[Scores]:
    """Return the scores of each layer apart."""
    return [{at: s for at, s in scores.items() if at[0] == layer} for layer in sorted({at[0] for at in scores})]


class Reference:
    """What each policy keeps before the window, by loops."""

    def __init__(self, layers: list[LayerInputs], count: int) -> None:
        self.layers, self.count = layers, count
        self.attention = [attention_rows(layer) for layer in layers]
        heads, tokens = layers[0].keys.shape[:2]
        self.group, self.num_past = layers[0].queries.shape[0] // heads, tokens - WINDOW
        self.heads = list(product(range(len(layers)), range(heads)))

    def members(self, layer: int, head: int) -> list[tuple[int, list[list[float]]]]:
        """Return the query heads of a key/value head, each with its rows."""
        return [(h, self.attention[layer][h]) for h in range(head * self.group, (head + 1) * self.group)]

    def mean(self, layer: int, head: int, *, pooled: bool = True) -> list[float]:
        """Return the mean attention to each past token."""
        rows = [row[: self.num_past] for _, found in self.members(layer, head) for row in found]
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return smooth(mean, 5) if pooled else mean

    def norms(self, layer: int, head: int) -> list[float]:
        """Return the mean L1 norm over a group."""
        members = range(head * self.group, (head + 1) * self.group)
        return [sum(value_norm(self.layers[layer], h, t, 1) for h in members) / self.group for t in range(self.num_past)]

    def scores(self, of: object) -> Scores:
        """Return a function of (layer, head) as scores of tokens."""
        return {(layer, head, t): s for layer, head in self.heads for t, s in enumerate(of(layer, head))}  # type: ignore[operator]

    def snapkv(self) -> Tokens:
        """Return each head's top."""
        return set().union(*(best(head, self.count) for head in by_head(self.scores(self.mean))))

    def adakv(self) -> Tokens:
        """Return each layer's top after each head's first fifth."""
        scores = self.scores(self.mean)
        first = set().union(*(best(head, self.count // 5) for head in by_head(scores)))
        return set().union(*(best(layer, self.count * len(by_head(layer)), first) for layer in by_layer(scores)))

    def _two_stages(self, budgets: Tokens) -> Tokens:
        plain = self.scores(self.mean)
        norms = self.scores(self.norms)
        weighted = {at: (plain[at] + 1e-4) * norms[at] for at in plain}
        kept: Tokens = set()
        for head, again in zip(by_head(plain), by_head(weighted), strict=True):
            count = len(budgets & head.keys())
            kept |= best(again, count, best(head, count // 2))
        return kept

    def criticalkv(self) -> Tokens:
        """Return two stages of each head's share."""
        return self._two_stages(self.snapkv())

    def critical_adakv(self) -> Tokens:
        """Return two stages within Ada-KV's shares."""
        return self._two_stages(self.adakv())

    def _worst(self, layer: int, head: int) -> list[float]:
        rows = []
        for _, found in self.members(layer, head):
            for row in found:
                past = row[: self.num_past]
                pooled = smooth(past, 5)
                rows.append([x / sum(pooled) * sum(past) for x in pooled])
        worst = [max(column) for column in zip(*rows, strict=True)]
        return [max(x, sum(worst) / len(worst)) for x in worst]

    def _core(self, layer: int, head: int) -> Tokens:
        rows = [row for found in self.attention[layer] for row in found]
        window = sum(sum(row[self.num_past :]) for row in rows) / len(rows)
        mean = self.mean(layer, head, pooled=False)
        order, mass, core = sorted(range(self.num_past), key=lambda t: (-mean[t], t)), 0.0, set()
        for t in order[: self.count]:
            mass += mean[t] / sum(mean)
            if mass >= 0.9 - window:
                break
            core.add((layer, head, t))
        return core

    def _defensive(self) -> Scores:
        found: Scores = {}
        for layer in range(len(self.layers)):
            heads = [head for at, head in self.heads if at == layer]
            norms = {head: self.norms(layer, head) for head in heads}
            worst = {head: self._worst(layer, head) for head in heads}
            scores = {
                (layer, head, t): worst[head][t] * (norms[head][t] / sum(norms[other][t] for other in heads))
                for head in heads
                for t in range(self.num_past)
            }
            core = set().union(*(self._core(layer, head) for head in heads))
            found |= scores | dict.fromkeys(core, max(scores.values()))
        return found

    def defensivekv(self) -> Tokens:
        """Return each layer's top in the worst case."""
        return set().union(*(best(layer, self.count * len(by_head(layer))) for layer in by_layer(self._defensive())))

    def layer_defensivekv(self) -> Tokens:
        """Return the model's top in the worst case."""
        return best(self._defensive(), self.count * len(self.heads))

    def laprox(self) -> Tokens:
        """Return the model's top by the bound on the product's loss."""
        found: Scores = {}
        for index, layer in enumerate(self.layers):
            group, total = self.group, 0.0
            for place in range(WINDOW):
                out = [0.0] * layer.output_projection.shape[2]
                for h, rows in enumerate(self.attention[index]):
                    mixed = [dot(rows[place], column) for column in layer.values[h // group].T.tolist()]
                    added = [dot(mixed, column) for column in layer.output_projection[h].T.tolist()]
                    out = [x + y for x, y in zip(out, added, strict=True)]
                total += sum(x * x for x in out)
            for _, head in [at for at in self.heads if at[0] == index]:
                for t in range(self.num_past):
                    found[index, head, t] = sum(
                        math.sqrt(sum(row[t] ** 2 for row in rows)) * value_norm(layer, h, t, 2) / math.sqrt(total)
                        for h, rows in self.members(index, head)
                    )
        return best(found, self.count * len(self.heads))


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
    with pytest.raises(InvalidInputError, match=r"--budget: .* does not lie above 0 and up to 1"):
        select(small("snapkv"), make_layers(0, 1, 1, 1, 30), budget)


def test_a_budget_below_the_window_is_refused() -> None:
    """The window is always kept, so that a budget must have room for it; the message says which does."""
    with pytest.raises(InvalidInputError, match=r"0.1 of 30 tokens are 3, fewer than the window of 4 .* at least 0.133"):
        select(small("snapkv"), make_layers(0, 1, 1, 1, 30), 0.1)


def test_policies_by_name() -> None:
    """An unknown name is refused with those that there are."""
    with pytest.raises(InvalidInputError, match="'h2o' is not one of snapkv, adakv"):
        find_policy("h2o")


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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_size": 0}, "window_size 0 is not at least 1"),
        ({"kernel_size": 4}, "kernel_size 4 is not an odd number"),
        ({"safeguard": 1.5}, "safeguard 1.5 does not lie between 0 and 1"),
        ({"first_stage": -1}, "first_stage -1 does not lie between 0 and 1"),
    ],
)
def test_settings_are_checked(changes: dict[str, float], message: str) -> None:
    """A policy's settings have bounds."""
    with pytest.raises(InvalidInputError, match=message):
        CriticalAdaKV(**changes)
    if "first_stage" in changes:
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
