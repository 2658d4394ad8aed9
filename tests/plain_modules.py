"""Small plain modules that the tests trace, run piece by piece and measure."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - as all of PyTorch calls it
from torch import Tensor, nn


class Layer(nn.Module):
    """A decoder layer: causal self-attention and a feed-forward network."""

    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, seq, hidden)."""
        batch, seq, hidden = x.shape
        query, key, value = (
            part.view(batch, seq, self.num_heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, hidden))
        down: Tensor = self.down(F.gelu(self.up(self.norm2(x))))
        return x + down


class Transformer(nn.Module):
    """A decoder-only language model."""

    def __init__(self, vocab: int = 100, hidden: int = 32, num_heads: int = 4, num_layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, hidden)
        self.layers = nn.ModuleList(Layer(hidden, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits, (batch, seq, vocab)."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class Pooled(nn.Module):
    """Takes a mask, a list, a number and a name, has a buffer, and returns two tensors."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(1, 2, 8))
        self.table = nn.Embedding(16, 8)
        self.proj = nn.Linear(8, 8)

    def forward(
        self, x: Tensor, mask: Tensor, *, extra: list[Tensor], num_top: int = 2, mode: str = "mean"
    ) -> tuple[Tensor, ...]:
        """Return the pooled vectors, (batch, 8), and the places of the largest elements, embedded, (batch, num_top, 8)."""
        y = self.proj(x * self.scale + extra[0])
        y = y.masked_fill(~mask[..., None], 0.0)
        pooled = y.mean(1) if mode == "mean" else y.sum(1)
        return pooled, self.table(pooled.topk(num_top).indices)


class Running(nn.Module):
    """Keeps running statistics and draws random numbers, as a module in training does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, 8)."""
        dropped: Tensor = self.dropout(self.norm(x))
        return dropped


class Pairs(nn.Module):
    """Compares all rows: memory grows with the square of their number."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Return (rows, rows)."""
        return (x * self.scale) @ x.T


class Residual(nn.Module):
    """A projection and its inverse, with a residual around both."""

    def __init__(self) -> None:
        super().__init__()
        self.intermediate_size_of_all_the_experts_together = 24
        self.up = nn.Linear(8, self.intermediate_size_of_all_the_experts_together, bias=False)
        self.down = nn.Linear(24, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        inner = self.up(x).view(-1, self.intermediate_size_of_all_the_experts_together)
        return x + self.down(torch.relu(inner))


class Residuals(nn.Module):
    """An embedding, two equal layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.layers = nn.ModuleList(Residual() for _ in range(2))
        self.lm_head = nn.Linear(8, 32, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (tokens, 32)."""
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class Branches(nn.Module):
    """Three projections side by side; the first goes to the next line and past it, the last skips it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.inner, self.join = (nn.Linear(8, 8, bias=False) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        """Return (tokens, 8)."""
        first = self.first(x)
        return self.join(self.inner(first + self.second(x)) + first + self.third(x))
