"""KV cache groups: layers that hold the same blocks of a request, because they attend alike.

The word that the catalog, the predictors and the simulator share: a table of operations tells a model's groups, the scheduler
allocates by them. All groups draw blocks of one size from one pool. Holds no torch and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dooly.errors import InvalidInputError


class AttentionKind(StrEnum):
    """Which positions a layer's cache must keep, by vLLM's names."""

    FULL_ATTENTION = "full_attention"
    """All."""
    SLIDING_WINDOW = "sliding_window"
    """The last so many."""
    CHUNKED_LOCAL_ATTENTION = "chunked_local_attention"
    """Those from the start of the chunk that the next position lies in."""
    MAMBA = "mamba"
    """The last alone: a recurrent state, which takes one block whatever the position."""


@dataclass(frozen=True, slots=True)
class KVCacheGroup:
    """One group of layers.

    Raises:
        InvalidInputError: A window is given where the kind has none, or not where it has one.
    """

    kind: AttentionKind = AttentionKind.FULL_ATTENTION
    """What its layers keep."""
    window: int | None = None
    """Tokens of a sliding window (`sliding_window`) or of a chunk (`attention_chunk_size`); None for other kinds."""
    num_prefill_checkpoint_blocks: int = 0
    """Blocks beside the state's in which a recurrent layer can leave the state within a prefill: 0 or 1."""

    def __post_init__(self) -> None:
        windowed = self.kind in {AttentionKind.SLIDING_WINDOW, AttentionKind.CHUNKED_LOCAL_ATTENTION}
        if windowed != (self.window is not None) or (self.window is not None and self.window < 1):
            raise InvalidInputError(
                f"KVCacheGroup: {self.kind.value}: window must be {'at least 1' if windowed else 'None'}, got {self.window}"
            )
        most = int(self.kind is AttentionKind.MAMBA)
        if not 0 <= self.num_prefill_checkpoint_blocks <= most:
            raise InvalidInputError(
                f"KVCacheGroup: {self.kind.value}: num_prefill_checkpoint_blocks must lie in 0..{most}, "
                f"got {self.num_prefill_checkpoint_blocks}"
            )


FULL_ATTENTION = (KVCacheGroup(),)
"""The groups of a model in which every layer has full attention."""
