"""From scheduled batches to the numbers that latency depends on, many batches at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.batch import Batch

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_UNLIMITED = 1 << 40
"""A window longer than any context."""


@dataclass(frozen=True)
class BatchArrays:
    """Batches as arrays, a batch a row. Batches of fewer requests are filled with requests of no tokens."""

    new: Ints
    """Tokens to compute of each request, shape (num_batches, num_reqs); 0 marks a place without a request."""
    computed: Ints
    """Tokens in the KV cache of each request, shape (num_batches, num_reqs)."""
    num_new_requests: Ints
    """Requests that the engine sees for the first time, shape (num_batches,)."""
    _work: dict[int | None, AttentionWork] = field(default_factory=dict, repr=False, compare=False)

    def attention(self, window: int | None) -> AttentionWork:
        """Return the attention work of the batches under a sliding window, or without one; computed once."""
        if window not in self._work:
            self._work[window] = AttentionWork.of(self, window)
        return self._work[window]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> BatchArrays:
        """Return batches as arrays."""
        width = max(b.num_reqs for b in batches)
        new = np.zeros((len(batches), width), dtype=np.int64)
        computed = np.zeros_like(new)
        for row, batch in enumerate(batches):
            new[row, : batch.num_reqs] = batch.num_new_tokens
            computed[row, : batch.num_reqs] = batch.num_computed_tokens
        return cls(new, computed, np.array([b.num_new_requests for b in batches], dtype=np.int64))

    @classmethod
    def decode_run(cls, num_computed_tokens: Ints, num_steps: int) -> BatchArrays:
        """Return `num_steps` consecutive decode steps over the same requests, each context one longer than the step before."""
        computed = num_computed_tokens[None, :] + np.arange(num_steps)[:, None]
        return cls(np.ones_like(computed), computed, np.zeros(num_steps, dtype=np.int64))

    @classmethod
    def of_counts(cls, num_tokens: Ints, num_reqs: Ints) -> BatchArrays:
        """Return batches of so many tokens and requests, shape (num_batches,) both, for what depends on nothing else."""
        new = (num_reqs[:, None] > np.arange(num_reqs.max())).astype(np.int64)
        new[:, 0] += num_tokens - num_reqs
        return cls(new, np.zeros_like(new), np.zeros_like(num_reqs))

    @cached_property
    def num_tokens(self) -> Ints:
        """Tokens computed in each step, shape (num_batches,)."""
        return np.asarray(self.new.sum(axis=1))

    @cached_property
    def num_reqs(self) -> Ints:
        """Requests in each step, shape (num_batches,)."""
        return np.asarray((self.new > 0).sum(axis=1))


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What attention does in each batch, shape (num_batches,) each, prefills and decodes apart."""

    decode_kv_tokens: Floats
    """Cached positions that decodes read."""
    prefill_pairs: Floats
    """Query-key pairs of prefills."""
    prefill_kv_tokens: Floats
    """Positions that prefills read."""
    prefill_tokens: Floats
    """Queries of prefills."""
    num_decodes: Floats
    """Requests with one query."""
    num_prefills: Floats
    """Requests with several queries."""
    longest: Floats
    """Positions that the longest request reads."""
    decode_longest: Floats
    """Positions that the longest decode reads."""
    decode_kv_squares: Floats
    """Squares of the positions that each decode reads, summed: with the sum, how unequal they are."""

    @classmethod
    def of(cls, batches: BatchArrays, window: int | None) -> AttentionWork:
        """Return the attention work of batches; with a sliding window a query sees the last `window` positions only."""
        from dooly.predict._compiled import attention_work

        limit = window if window is not None and window > 0 else _UNLIMITED
        return cls(*attention_work(batches.new, batches.computed, limit))

    @property
    def query_key_pairs(self) -> Floats:
        """Query-key pairs of all requests."""
        return self.decode_kv_tokens + self.prefill_pairs

    @property
    def kv_tokens(self) -> Floats:
        """Distinct positions read, over all requests."""
        return self.decode_kv_tokens + self.prefill_kv_tokens

    def columns(self) -> Floats:
        """Return the terms that attention's time is a sum of, shape (num_batches, 6)."""
        return np.stack(
            [
                self.decode_kv_tokens,
                self.prefill_pairs,
                self.prefill_kv_tokens,
                self.prefill_tokens,
                self.num_decodes,
                self.num_prefills,
            ],
            axis=1,
        )
