"""CritiPrefill (arXiv 2409.12490): in prefill, a segment of queries attends to the blocks of keys that are critical to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError
from dooly.kv._allocation import keep_top
from dooly.kv_policy import (
    CRITICAL_BLOCK_SIZE,
    NUM_DENSE_LAYERS,
    NUM_DENSE_TOKENS,
    SEGMENT_SIZE,
    Scope,
    check_budget,
    share_of,
)

if TYPE_CHECKING:
    import torch


def block_criticality(queries: torch.Tensor, keys: torch.Tensor, segment_size: int, block_size: int) -> torch.Tensor:
    """Return how critical each earlier block of keys is to each segment of queries but the last: softmax over blocks.

    Segments and blocks stand in by their element-wise maximum and minimum. A block counts by the larger of the products with its
    two, each the mean over the segment's two, and over a group's heads. Products are not scaled.

    Args:
        queries: (num_heads, num_tokens, head_dim).
        keys: (num_kv_heads, num_tokens, head_dim).
        segment_size: Queries of a segment; a multiple of `block_size`.
        block_size: Keys of a block.

    Returns:
        (num_kv_heads, num_segments, num_blocks); 0 for blocks that do not lie before the segment.
    """
    num_segments = (queries.shape[1] - 1) // segment_size
    length = num_segments * segment_size
    segments = queries[:, :length].unflatten(1, (num_segments, segment_size))
    blocks = keys[:, :length].unflatten(1, (length // block_size, block_size))
    middle = (segments.amax(2) + segments.amin(2)).float() / 2
    middle = middle.unflatten(0, (keys.shape[0], -1))
    products = [middle @ end.float().transpose(1, 2)[:, None] for end in (blocks.amax(2), blocks.amin(2))]
    logits = products[0].maximum(products[1]).mean(1)
    later = ~earlier_blocks(num_segments, segment_size // block_size, logits)
    weights: torch.Tensor = logits.masked_fill(later, -float("inf")).softmax(-1).nan_to_num(0)
    return weights


def earlier_blocks(num_segments: int, blocks_per_segment: int, like: torch.Tensor) -> torch.Tensor:
    """Return whether each block lies before each segment: (num_segments, num_blocks), on the device of `like`."""
    import torch

    blocks = torch.arange(num_segments * blocks_per_segment, device=like.device)
    segments = torch.arange(num_segments, device=like.device)
    return blocks < (segments * blocks_per_segment)[:, None]


@dataclass(frozen=True, slots=True)
class CritiPrefill:
    """Compute a prompt's attention over critical blocks only; nothing of the cache is dropped."""

    segment_size: int = SEGMENT_SIZE
    """Queries that choose blocks together."""
    block_size: int = CRITICAL_BLOCK_SIZE
    """Keys that are chosen together."""
    num_dense_tokens: int = NUM_DENSE_TOKENS
    """First tokens of a prompt whose attention is computed whole, beside that of its last segment."""
    num_dense_layers: int = NUM_DENSE_LAYERS
    """First layers whose attention is computed whole."""
    previous_weight: float = 0.25
    """Weight of the layer before in a layer's criticality."""

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.segment_size % self.block_size:
            raise InvalidInputError(
                f"CritiPrefill: a segment of {self.segment_size} is not whole blocks of {self.block_size}; use a multiple"
            )
        if not 0 <= self.previous_weight < 1:
            raise InvalidInputError(f"CritiPrefill: previous_weight {self.previous_weight:g} does not lie between 0 and 1")

    def num_critical_blocks(self, num_tokens: int, budget: float | None) -> int:
        """Return how many blocks a segment attends to beside itself: a share of the prompt, or 2048 tokens as published.

        Raises:
            InvalidInputError: The budget does not lie above 0 and up to 1, or has no room for one block.
        """
        if budget is None:
            return _PUBLISHED_TOKENS // self.block_size
        check_budget(budget)
        if not (blocks := share_of(num_tokens, budget) // self.block_size):
            raise InvalidInputError(
                f"budget: {budget:g} of {num_tokens} tokens are less than a block of {self.block_size}; use a larger budget"
            )
        return blocks

    def is_whole(self, num_tokens: int) -> bool:
        """Return whether a prompt is so short that its attention is computed whole."""
        return self._num_dense(num_tokens) == num_tokens

    def select(
        self, queries: torch.Tensor, keys: torch.Tensor, num_blocks: int, previous: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the blocks that each segment attends to, and the criticality that the next layer's is blended with.

        Args:
            queries: (num_heads, num_tokens, head_dim).
            keys: (num_kv_heads, num_tokens, head_dim).
            num_blocks: Blocks to choose for a segment, of those before it; all where there are no more.
            previous: Criticality of the layer before; None in the first that chooses.

        Returns:
            Whether each block is chosen, and its criticality: both (num_kv_heads, num_segments, num_blocks), of all segments but
            the last.
        """
        criticality = block_criticality(queries, keys, self.segment_size, self.block_size)
        if previous is not None:
            criticality = self.previous_weight * previous + (1 - self.previous_weight) * criticality
        earlier = earlier_blocks(criticality.shape[1], self.segment_size // self.block_size, criticality)
        chosen = keep_top(criticality, min(num_blocks, criticality.shape[2]), Scope.HEAD) & earlier
        return chosen, criticality

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Return the attention output over what each segment chose: (num_heads, num_tokens, head_dim)."""
        import torch

        num_dense = self._num_dense(queries.shape[1])
        parts = [_attend_whole(queries[:, :num_dense], keys[:, :num_dense], values[:, :num_dense], scaling)]
        for start in range(num_dense, queries.shape[1], self.segment_size):
            stop = start + self.segment_size
            if stop < queries.shape[1]:
                index = self._index(chosen[:, start // self.segment_size], start, keys.shape[2])
                near = [_gather(tensor, index, start, stop) for tensor in (keys, values)]
            else:
                near = [tensor[:, :stop] for tensor in (keys, values)]
            parts.append(_attend_segment(queries[:, start:stop], near[0], near[1], scaling))
        return torch.cat(parts, 1)

    def num_pairs(self, num_tokens: int, num_blocks: int) -> int:
        """Return the pairs of a query and a key that one head's attention multiplies; causal attention has n * (n + 1) / 2."""
        num_dense = self._num_dense(num_tokens)
        pairs = num_dense * (num_dense + 1) // 2
        for start in range(num_dense, num_tokens, self.segment_size):
            length = min(self.segment_size, num_tokens - start)
            is_last = start + self.segment_size >= num_tokens
            far = start if is_last else min(num_blocks * self.block_size, start)
            pairs += length * far + length * (length + 1) // 2
        return pairs

    def _num_dense(self, num_tokens: int) -> int:
        """Return how many first tokens attend to all before them: whole segments."""
        whole = -(-self.num_dense_tokens // self.segment_size) * self.segment_size
        return min(num_tokens, max(whole, self.segment_size))

    def _index(self, chosen: torch.Tensor, start: int, head_dim: int) -> torch.Tensor:
        """Return the positions of a segment's chosen keys: (num_kv_heads, num_chosen, head_dim)."""
        import torch

        blocks = chosen[:, : start // self.block_size].nonzero()[:, 1].reshape(chosen.shape[0], -1)
        within = torch.arange(self.block_size, device=chosen.device)
        return (blocks[..., None] * self.block_size + within).flatten(1)[..., None].expand(-1, -1, head_dim)


_PUBLISHED_TOKENS = 2048
"""Tokens that a segment attends to in the authors' code."""


def _gather(tensor: torch.Tensor, index: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    import torch

    return torch.cat([tensor.gather(1, index), tensor[:, start:stop]], 1)


def _attend_whole(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    many = queries.shape[0] != keys.shape[0]
    return scaled_dot_product_attention(queries[None], keys[None], values[None], is_causal=True, scale=scaling, enable_gqa=many)[
        0
    ]


def _attend_segment(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float) -> torch.Tensor:
    """Return attention to all keys but a segment's own last ones, which are causal; a group's heads go as one's queries."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    num_heads, length, head_dim = queries.shape
    group = num_heads // keys.shape[0]
    mask = torch.ones(length, keys.shape[1], dtype=torch.bool, device=queries.device).tril(keys.shape[1] - length)
    rows = queries.reshape(keys.shape[0], group * length, head_dim)
    out = scaled_dot_product_attention(rows[None], keys[None], values[None], attn_mask=mask.repeat(group, 1), scale=scaling)
    return out[0].reshape(num_heads, length, values.shape[2])
