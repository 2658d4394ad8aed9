"""What policies keep, token by token in plain Python: by what goes into attention, and by scores that are given."""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING

import torch

from dooly.kv import LayerInputs

if TYPE_CHECKING:
    from collections.abc import Iterable

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

    def plain(self) -> Scores:
        """Return the mean attention to each token."""
        return self.scores(self.mean)

    def weighted(self) -> Scores:
        """Return that times the norm of what the token adds."""
        plain, norms = self.plain(), self.scores(self.norms)
        return {at: (plain[at] + 1e-4) * norms[at] for at in plain}

    def snapkv(self) -> Tokens:
        """Return each head's top."""
        return set().union(*(best(head, self.count) for head in by_head(self.plain())))

    def adakv(self) -> Tokens:
        """Return each layer's top after each head's first fifth."""
        scores = self.plain()
        first = set().union(*(best(head, self.count // 5) for head in by_head(scores)))
        return set().union(*(best(layer, self.count * len(by_head(layer)), first) for layer in by_layer(scores)))

    def _two_stages(self, budgets: Tokens) -> Tokens:
        kept: Tokens = set()
        for head, again in zip(by_head(self.plain()), by_head(self.weighted()), strict=True):
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

    def worst(self) -> Scores:
        """Return the worst case times each head's share of the token's norms in the layer."""
        found: Scores = {}
        for layer in range(len(self.layers)):
            heads = [head for at, head in self.heads if at == layer]
            norms = {head: self.norms(layer, head) for head in heads}
            worst = {head: self._worst(layer, head) for head in heads}
            for head, t in product(heads, range(self.num_past)):
                found[layer, head, t] = worst[head][t] * (norms[head][t] / sum(norms[other][t] for other in heads))
        return found

    def core(self) -> Tokens:
        """Return each head's tokens that make up most of its attention, as far as its even budget goes."""
        return set().union(*(self._core(layer, head) for layer, head in self.heads))

    def _defensive(self) -> Scores:
        worst, core = self.worst(), self.core()
        highest = {layer: max(s for at, s in worst.items() if at[0] == layer) for layer, _ in self.heads}
        return {at: highest[at[0]] if at in core else s for at, s in worst.items()}

    def defensivekv(self) -> Tokens:
        """Return each layer's top in the worst case."""
        return set().union(*(best(layer, self.count * len(by_head(layer))) for layer in by_layer(self._defensive())))

    def layer_defensivekv(self) -> Tokens:
        """Return the model's top in the worst case."""
        return best(self._defensive(), self.count * len(self.heads))

    def bounds(self) -> Scores:
        """Return the bound on what each token's loss costs the product."""
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
        return found

    def laprox(self) -> Tokens:
        """Return the model's top by the bound."""
        return best(self.bounds(), self.count * len(self.heads))


class Drawn(Reference):
    """What each policy keeps by scores that are given: (num_layers, num_scores, num_kv_heads, num_past)."""

    def __init__(self, scores: torch.Tensor, count: int) -> None:
        self.given, self.count = scores.tolist(), count
        self.num_past = scores.shape[3]
        self.heads = list(product(range(scores.shape[0]), range(scores.shape[2])))

    def _of(self, which: int) -> Scores:
        return self.scores(lambda layer, head: self.given[layer][which][head])

    def plain(self) -> Scores:
        """Return the first score."""
        return self._of(0)

    worst = bounds = plain

    def weighted(self) -> Scores:
        """Return the second score."""
        return self._of(1)

    def core(self) -> Tokens:
        """Return each head's top by the second score, where that is not 0."""
        return set().union(*(best({at: s for at, s in head.items() if s}, self.count) for head in by_head(self._of(1))))
