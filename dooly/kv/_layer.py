"""What a policy looks at: a layer's window queries, keys, values and output projection, and the two quantities scores use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """The attention of one layer over one request's prompt, with rotary embeddings applied."""

    queries: torch.Tensor
    """Queries of the window, the prompt's last tokens: (num_heads, window_size, head_dim)."""
    keys: torch.Tensor
    """Keys of the whole prompt: (num_kv_heads, num_tokens, head_dim)."""
    values: torch.Tensor
    """Values of the whole prompt: (num_kv_heads, num_tokens, head_dim)."""
    output_projection: torch.Tensor
    """The rows of the output projection that each head feeds: (num_heads, head_dim, hidden_size)."""
    scaling: float
    """What products of queries and keys are multiplied by, as head_dim**-0.5."""

    def __post_init__(self) -> None:
        num_heads, window_size, head_dim = self.queries.shape
        num_kv_heads, num_tokens, _ = self.keys.shape
        if self.values.shape[:2] != self.keys.shape[:2] or head_dim != self.keys.shape[2] or num_heads % num_kv_heads:
            raise InvalidInputError(
                f"LayerInputs: queries {tuple(self.queries.shape)}, keys {tuple(self.keys.shape)} and values "
                f"{tuple(self.values.shape)} do not fit; give (heads, window, size) and twice (kv_heads, tokens, size)"
            )
        if self.output_projection.shape[0] != num_heads or self.output_projection.shape[1] != self.values.shape[2]:
            raise InvalidInputError(
                f"LayerInputs: output projection {tuple(self.output_projection.shape)} is not (heads, size of a value, hidden)"
            )
        if window_size > num_tokens:
            raise InvalidInputError(f"LayerInputs: a window of {window_size} queries is longer than the {num_tokens} tokens")

    @property
    def num_past(self) -> int:
        """Tokens before the window."""
        return self.keys.shape[1] - self.queries.shape[1]

    def window_attention(self) -> torch.Tensor:
        """Return the causal softmax attention of the window's queries: (num_kv_heads, group, window_size, num_tokens), float32.

        Float64 inputs stay float64.
        """
        import torch

        num_heads, window_size, head_dim = self.queries.shape
        num_kv_heads, num_tokens, _ = self.keys.shape
        # Scaled before the product, which overflows float16 otherwise.
        rows = (self.queries * self.scaling).reshape(num_kv_heads, num_heads // num_kv_heads * window_size, head_dim)
        logits = _float(rows @ self.keys.transpose(1, 2))
        logits = logits.reshape(num_kv_heads, num_heads // num_kv_heads, window_size, num_tokens)
        places = torch.arange(num_tokens, device=logits.device)
        later = places > places[num_tokens - window_size :, None]
        return logits.masked_fill(later, -torch.inf).softmax(-1)

    def projected_norms(self, order: int) -> torch.Tensor:
        """Return each past token's norm of its value row after the output projection: (num_kv_heads, group, num_past).

        Args:
            order: 1 multiplies out in the values' own type, 2 * num_past * head_dim * hidden_size FLOPs a head; 2 goes by the
                projection's Gram matrix, 2 * head_dim**2 * (num_past + hidden_size).
        """
        import torch
        from torch.linalg import vector_norm

        num_kv_heads = self.keys.shape[0]
        values = self.values[:, : self.num_past]
        projections = self.output_projection.reshape(num_kv_heads, -1, *self.output_projection.shape[1:])
        if order == 2:  # noqa: PLR2004 - the Euclidean norm
            values, projections = _float(values), _float(projections)
            gram = projections @ projections.transpose(-1, -2)
            mixed = values @ gram.transpose(1, 2).flatten(2)  # one product a group: gram is symmetric, its heads side by side
            squares: torch.Tensor = (mixed.unflatten(2, gram.shape[1:3]) * values[:, :, None]).sum(-1)
            return squares.transpose(1, 2).clamp(min=0).sqrt()
        kind = torch.promote_types(values.dtype, torch.float32)
        # One head at a time: all heads at once would hold num_heads * num_past * hidden_size numbers.
        norms = [
            torch.stack([vector_norm(value @ projection, ord=1, dim=-1, dtype=kind) for projection in group])
            for value, group in zip(values, projections, strict=True)
        ]
        return torch.stack(norms)


def positive(sums: torch.Tensor) -> torch.Tensor:
    """Return sums to divide by, where all that is summed may be 0: as attention before the window, or values."""
    import torch

    return sums.clamp(min=torch.finfo(sums.dtype).tiny)


def _float(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in at least float32."""
    import torch

    return tensor if tensor.dtype == torch.float64 else tensor.float()
