"""CritiPrefill: which blocks are chosen, and attention over them, against loops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from dooly.errors import InvalidInputError  # noqa: E402 - after the skip
from dooly.kv import CritiPrefill  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

SEGMENT, BLOCK, SIZE = 8, 4, 3
POLICY = CritiPrefill(SEGMENT, BLOCK, num_dense_tokens=SEGMENT)


def inputs(seed: int, num_kv_heads: int, group: int, num_tokens: int) -> tuple[torch.Tensor, ...]:
    """Return queries, keys and values of normal numbers."""
    draw = torch.Generator().manual_seed(seed)
    heads = (num_kv_heads * group, num_kv_heads, num_kv_heads)
    return tuple(torch.randn(head, num_tokens, SIZE, generator=draw, dtype=torch.float64) for head in heads)


def criticality(queries: list[list[list[float]]], keys: list[list[float]], segment: int) -> list[float]:
    """Return the softmax over earlier blocks for a group's heads, by loops."""
    logits = []
    for block in range(segment * SEGMENT // BLOCK):
        rows = keys[block * BLOCK : (block + 1) * BLOCK]
        ends = [[end(column) for column in zip(*rows, strict=True)] for end in (max, min)]
        total = 0.0
        for head in queries:
            own = head[segment * SEGMENT : (segment + 1) * SEGMENT]
            extremes = [[end(column) for column in zip(*own, strict=True)] for end in (max, min)]
            products = [[sum(q * k for q, k in zip(query, key, strict=True)) for query in extremes] for key in ends]
            total += max(sum(pair) / 2 for pair in products)
        logits.append(total / len(queries))
    weights = [math.exp(logit - max(logits)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    num_tokens=st.integers(SEGMENT + 1, 40),
    num_blocks=st.integers(1, 4),
)
def test_chosen_blocks_match_brute_force(seed: int, num_kv_heads: int, group: int, num_tokens: int, num_blocks: int) -> None:
    """Each segment but the last chooses the most critical of the blocks before it, or all where there are no more."""
    queries, keys, _ = inputs(seed, num_kv_heads, group, num_tokens)
    chosen, found = POLICY.select(queries, keys, num_blocks)
    for head in range(num_kv_heads):
        own = queries[head * group : (head + 1) * group].tolist()
        for segment in range((num_tokens - 1) // SEGMENT):
            expected = criticality(own, keys[head].tolist(), segment) if segment else []
            assert found[head, segment, : len(expected)].tolist() == pytest.approx(expected, rel=1e-4)
            best = sorted(range(len(expected)), key=lambda block: (-found[head, segment, block].item(), block))[:num_blocks]
            assert chosen[head, segment].nonzero().flatten().tolist() == sorted(best)


def pairs(num_tokens: int, chosen: torch.Tensor) -> Iterator[tuple[int, list[int]]]:
    """Yield each query with the keys that it attends to."""
    for query in range(num_tokens):
        segment = query // SEGMENT
        if segment == 0 or (segment + 1) * SEGMENT >= num_tokens:
            yield query, [*range(query + 1)]
        else:
            far = [key for key in range(segment * SEGMENT) if chosen[segment, key // BLOCK]]
            yield query, [*far, *range(segment * SEGMENT, query + 1)]


@pytest.mark.parametrize("num_tokens", [5, 8, 9, 33, 40])
def test_attention_reads_what_was_chosen(num_tokens: int) -> None:
    """The output is that of each query over its keys alone, and the pairs are as many as are counted."""
    queries, keys, values = inputs(0, 2, 2, num_tokens)
    chosen, _ = POLICY.select(queries, keys, 2) if num_tokens > SEGMENT else (torch.zeros(2, 0, 0), None)
    out = POLICY.attend(queries, keys, values, chosen, 0.5)
    for head in range(4):
        found = list(pairs(num_tokens, chosen[head // 2]))
        assert sum(len(seen) for _, seen in found) == POLICY.num_pairs(num_tokens, 2)
        for query, seen in found:
            weights = (keys[head // 2, seen] @ queries[head, query] * 0.5).softmax(0)
            torch.testing.assert_close(out[head, query], weights @ values[head // 2, seen])


def test_a_layer_is_blended_with_the_one_before() -> None:
    """A quarter of the criticality is the layer's before."""
    queries, keys, _ = inputs(0, 1, 1, 33)
    _, alone = POLICY.select(queries, keys, 2)
    before = torch.rand(alone.shape)
    torch.testing.assert_close(POLICY.select(queries, keys, 2, before)[1], 0.25 * before + 0.75 * alone)


def test_flops_fall_to_budget_and_segment() -> None:
    """At 128 K tokens with the published sizes, pairs are about n * (budget + half a segment), beside what stays whole."""
    policy, n = CritiPrefill(), 131072
    assert policy.num_critical_blocks(n, None) == 64
    found = policy.num_pairs(n, 64)
    assert found == pytest.approx(n * (2048 + 256) + 4096**2 / 2 - 4096 * 2304 + 512 * (n - 2048), rel=0.01)
    assert n * n / 2 / found > 20


def test_wrong_sizes_and_budgets_are_refused() -> None:
    """Segments are whole blocks, a blend is a share, and a budget has room for a block."""
    with pytest.raises(InvalidInputError, match="a segment of 100 is not whole blocks of 32"):
        CritiPrefill(segment_size=100)
    with pytest.raises(InvalidInputError, match="previous_weight 1 does not lie between 0 and 1"):
        CritiPrefill(previous_weight=1)
    with pytest.raises(InvalidInputError, match=r"^budget: 0.1 of 200 tokens are less than a block of 32"):
        CritiPrefill().num_critical_blocks(200, 0.1)
