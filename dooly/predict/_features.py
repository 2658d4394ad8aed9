"""From scheduled batches to the numbers that latency depends on, many batches at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np

from dooly.batch import MAX_TOKENS, Batch
from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

_UNLIMITED = 1 << 40
"""A window longer than any context."""


@dataclass(frozen=True)
class BatchArrays:
    """Batches as arrays, a batch a row. Batches of fewer requests are filled with requests of no tokens.

    Examples:
        >>> two = dooly.predict.BatchArrays.checked([[1, 1], [512, 0]], [[900, 3000], [0, 0]])
        >>> two.num_reqs.tolist(), two.num_tokens.tolist()
        ([2, 1], [2, 512])
    """

    new: Ints
    """Tokens to compute of each request, shape (num_batches, num_reqs); 0 marks a place without a request."""
    computed: Ints
    """Tokens in the KV cache of each request, shape (num_batches, num_reqs)."""
    num_new_requests: Ints
    """Requests that the engine sees for the first time, shape (num_batches,)."""
    num_draft_tokens: Ints | None = None
    """Tokens to compute of each request that are drafts to verify, shape (num_batches, num_reqs); None where there are none."""
    attended: tuple[tuple[float, BatchArrays], ...] = ()
    """Shares of the attention layers, each with the batches as its attention sees them; none where it sees these. See `Batch`."""
    _work: dict[tuple[int | None, bool], AttentionWork] = field(default_factory=dict, repr=False, compare=False)

    def attention(self, window: int | None, *, verifies_as_decodes: bool = False) -> AttentionWork:
        """Return the attention work of the batches under a sliding window, or without one; computed once.

        Args:
            window: Positions that a query sees at most; None for all before it.
            verifies_as_decodes: Whether a request with drafts counts as one decode, as where its queries read its keys once
                together, and not as a prompt's chunk.
        """
        key = (window, verifies_as_decodes and self.num_draft_tokens is not None)
        if key not in self._work:
            self._work[key] = AttentionWork.of(self._with_verifies_as_decodes() if key[1] else self, window)
        return self._work[key]

    def _with_verifies_as_decodes(self) -> BatchArrays:
        """Return the batches with one query, at the last place, of each request that verifies drafts."""
        drafts = self.num_draft_tokens
        assert drafts is not None
        return BatchArrays(np.where(drafts > 0, self.new - drafts, self.new), self.computed + drafts, self.num_new_requests)

    @classmethod
    def checked(
        cls, num_new_tokens: npt.ArrayLike, num_computed_tokens: npt.ArrayLike, num_new_requests: npt.ArrayLike | None = None
    ) -> BatchArrays:
        """Return batches given as arrays of a simulator's own.

        Args:
            num_new_tokens: Tokens that each step computes of each request, shape (num_batches, num_reqs); 0 where a batch of
                fewer requests has a place to spare.
            num_computed_tokens: Tokens whose keys and values lie in the cache already, shape (num_batches, num_reqs).
            num_new_requests: Requests that the engine sees for the first time, shape (num_batches,); by default those without
                computed tokens.

        Raises:
            InvalidInputError: Shapes differ, a count is negative, no whole number or out of range, or a batch has no request.
        """
        new, computed = np.asarray(num_new_tokens), np.asarray(num_computed_tokens)
        if new.ndim != 2 or new.shape != computed.shape or not new.size:  # noqa: PLR2004 - batches and requests
            raise InvalidInputError(
                f"BatchArrays: shapes {new.shape} and {computed.shape}; give both (num_batches, num_reqs), of at least one each"
            )
        fresh = np.asarray(((new > 0) & (computed == 0)).sum(axis=1) if num_new_requests is None else num_new_requests)
        if fresh.shape != new.shape[:1] or {array.dtype.kind for array in (new, computed, fresh)} - {"i", "u"}:
            raise InvalidInputError("BatchArrays: give whole numbers, and num_new_requests one a batch")
        if min(new.min(), computed.min(), fresh.min()) < 0 or not new.any(axis=1).all():
            raise InvalidInputError("BatchArrays: a count is negative or a batch has no request; a step needs at least one")
        if (most := max(new.max(), computed.max())) > MAX_TOKENS:
            raise InvalidInputError(f"BatchArrays: {most} tokens of one request, new or computed; give at most {MAX_TOKENS}")
        placed = np.where(new > 0, computed, 0)
        return cls(new.astype(np.int64), placed.astype(np.int64), fresh.astype(np.int64))

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> BatchArrays:
        """Return batches as arrays.

        Raises:
            InvalidInputError: One is no batch.
        """
        if (wrong := next((batch for batch in batches if not isinstance(batch, Batch)), None)) is not None:
            raise InvalidInputError(
                f"step: {spell(wrong)} is no batch; give dooly.Batch(num_new_tokens, num_computed_tokens), one of each a request"
            )
        width = max(b.num_reqs for b in batches)
        new = np.zeros((len(batches), width), dtype=np.int64)
        computed = np.zeros_like(new)
        for row, batch in enumerate(batches):
            new[row, : batch.num_reqs] = batch.num_new_tokens
            computed[row, : batch.num_reqs] = batch.num_computed_tokens
        drafts = None
        if any(batch.num_draft_tokens for batch in batches):
            drafts = np.zeros_like(new)
            for row, batch in enumerate(batches):
                drafts[row, : len(batch.num_draft_tokens)] = batch.num_draft_tokens
        fresh = np.array([b.num_new_requests for b in batches], dtype=np.int64)
        return cls(new, computed, fresh, drafts, cls._attended(batches))

    @classmethod
    def _attended(cls, batches: Sequence[Batch]) -> tuple[tuple[float, BatchArrays], ...]:
        """Return what attention sees of batches; all must have it in the same shares, which a batch that is seen as it is has."""
        shares = next((tuple(share for share, _ in batch.attended) for batch in batches if batch.attended), ())
        if any(batch.attended and tuple(share for share, _ in batch.attended) != shares for batch in batches):
            raise InvalidInputError("BatchArrays: attended: batches differ in their shares of layers; price them apart")
        views = [[batch.attended[place][1] if batch.attended else batch for batch in batches] for place in range(len(shares))]
        return tuple((share, cls.of(view)) for share, view in zip(shares, views, strict=True))

    @classmethod
    def decode_run(cls, num_computed_tokens: Ints | Sequence[int], num_steps: int) -> BatchArrays:
        """Return `num_steps` consecutive decode steps over the same requests, each context one longer than the step before.

        Raises:
            InvalidInputError: There is no request or no step, or a context is no whole number or out of range.
        """
        contexts, counts = np.asarray(num_computed_tokens), isinstance(num_steps, Integral) and num_steps > 0
        if contexts.dtype.kind not in "iu" or contexts.ndim != 1 or not contexts.size or contexts.min() < 0 or not counts:
            raise InvalidInputError(
                f"decode_run: {num_steps} steps over contexts {spell(num_computed_tokens)}; give a whole number of steps from 1, "
                "and of tokens from 0, one a request"
            )
        if contexts.max() > MAX_TOKENS:
            raise InvalidInputError(f"decode_run: {contexts.max()} tokens of one request; give at most {MAX_TOKENS}")
        computed = contexts.astype(np.int64, copy=False)[None, :] + np.arange(num_steps)[:, None]
        return cls(np.ones_like(computed), computed, np.zeros(num_steps, dtype=np.int64))

    @classmethod
    def of_counts(cls, num_tokens: Ints, num_reqs: Ints) -> BatchArrays:
        """Return batches of so many tokens and requests, shape (num_batches,) both, for what depends on nothing else."""
        new = (num_reqs[:, None] > np.arange(num_reqs.max())).astype(np.int64)
        new[:, 0] += num_tokens - num_reqs
        return cls(new, np.zeros_like(new), np.zeros_like(num_reqs))

    def __len__(self) -> int:
        return len(self.new)

    @cached_property
    def num_tokens(self) -> Ints:
        """Tokens computed in each step, shape (num_batches,)."""
        return np.asarray(self.new.sum(axis=1))

    @cached_property
    def num_reqs(self) -> Ints:
        """Requests in each step, shape (num_batches,)."""
        return np.asarray((self.new > 0).sum(axis=1))

    @cached_property
    def num_sampled(self) -> Ints:
        """Places that a token is sampled at in each step, as `Batch` has it, shape (num_batches,)."""
        return self.num_reqs if self.num_draft_tokens is None else self.num_reqs + self.num_draft_tokens.sum(axis=1)


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
