"""A scheduled batch: what one engine step works on.

The word every layer above tracing shares: measuring realises batches, predictors price them, the simulator schedules them.
Holds no torch and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose
from operator import index
from typing import TYPE_CHECKING

from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from collections.abc import Iterable


MAX_TOKENS = 1 << 30
"""Tokens of one request that no context comes near; squares of twice as many are within 64 bits."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step's work, a request an entry, in the order scheduled.

    Counts may be given as lists or numpy arrays of whole numbers too; they are kept as tuples.

    Raises:
        InvalidInputError: There is no request, a count is no whole number or out of range, or attention sees other tokens.

    Examples:
        >>> batch = dooly.Batch(num_new_tokens=(1, 1, 512), num_computed_tokens=(900, 3000, 0))
        >>> batch.num_reqs, batch.num_tokens, batch.num_new_requests
        (3, 514, 1)
    """

    num_new_tokens: tuple[int, ...]
    """Tokens computed in this step, one count a request (at least 1); 1 for a decode."""
    num_computed_tokens: tuple[int, ...]
    """Tokens whose keys and values already lie in the cache, one count a request."""
    num_new_requests: int = None  # type: ignore[assignment]  # an integer from the start
    """How many of the requests the engine sees for the first time in this step; by default those without computed tokens."""
    num_draft_tokens: tuple[int, ...] = ()
    """How many of the new tokens are drafts that the step verifies, one count a request; none where it is empty."""
    attended: tuple[tuple[float, Batch], ...] = ()
    """What attention sees, where that is another batch: pairs of a share of the attention layers and the `Batch` that these see,
    with as many new tokens, cut into requests by what each reads. Shares add up to 1, as in `((1.0, Batch(...)),)`; empty where
    all layers see this very batch. So a sparse prefill is told; see `dooly.kv_policy.KVPolicy.attended`."""

    def __post_init__(self) -> None:
        for name in ("num_new_tokens", "num_computed_tokens", "num_draft_tokens"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        if not self.num_new_tokens:
            raise InvalidInputError("Batch: no request; a step needs at least one; give num_new_tokens an entry")
        if len(self.num_new_tokens) != len(self.num_computed_tokens):
            raise InvalidInputError(
                f"Batch: {len(self.num_new_tokens)} num_new_tokens but {len(self.num_computed_tokens)} "
                "num_computed_tokens; give one of each a request"
            )
        if min(self.num_new_tokens) < 1 or min(self.num_computed_tokens) < 0:
            raise InvalidInputError(
                "Batch: num_new_tokens must be at least 1 and num_computed_tokens at least 0, "
                f"got {min(self.num_new_tokens)} and {min(self.num_computed_tokens)}"
            )
        if (most := max(*self.num_new_tokens, *self.num_computed_tokens)) > MAX_TOKENS:
            raise InvalidInputError(f"Batch: {most} tokens of one request, new or computed; give at most {MAX_TOKENS}")
        if self.num_new_requests is None:
            object.__setattr__(self, "num_new_requests", self.num_computed_tokens.count(0))
        object.__setattr__(self, "num_new_requests", _whole("num_new_requests", (self.num_new_requests,))[0])
        if self.num_draft_tokens and (
            len(self.num_draft_tokens) != len(self.num_new_tokens)
            or any(not 0 <= drafts < new for drafts, new in zip(self.num_draft_tokens, self.num_new_tokens, strict=True))
        ):
            raise InvalidInputError(
                f"Batch: num_draft_tokens {self.num_draft_tokens} must be one count a request, at least 0 and below its "
                "num_new_tokens; the token ahead of the drafts is new too"
            )
        if self.attended:
            self._check_attended()
        if not 0 <= self.num_new_requests <= len(self.num_new_tokens):
            raise InvalidInputError(f"Batch: num_new_requests {self.num_new_requests} is outside 0..{len(self.num_new_tokens)}")

    def _check_attended(self) -> None:
        try:
            shares, views = zip(*self.attended, strict=True)
            is_whole = isclose(sum(shares), 1) and all(isinstance(view, Batch) for view in views)
        except (TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise InvalidInputError(
                f"Batch: attended: {spell(self.attended)} are no shares of the layers, adding up to 1, each with the Batch that "
                "they see; give ((1.0, Batch(...)),). What decodes read of their context is num_computed_tokens"
            )
        if any(view.num_tokens != self.num_tokens for view in views):
            raise InvalidInputError(
                f"Batch: attended: attention must see the {self.num_tokens} tokens of the step, no more and no less"
            )

    @property
    def num_reqs(self) -> int:
        """Number of requests in the batch."""
        return len(self.num_new_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in the step, over all requests."""
        return sum(self.num_new_tokens)

    @property
    def num_query_key_pairs(self) -> int:
        """Tokens computed, each with all that it attends to, itself included."""
        rows = zip(self.num_new_tokens, self.num_computed_tokens, strict=True)
        return sum(new * computed + new * (new + 1) // 2 for new, computed in rows)

    @property
    def num_sampled(self) -> int:
        """Places that a token is sampled at: the last of each request, and each draft."""
        return len(self.num_new_tokens) + sum(self.num_draft_tokens)


def _whole(name: str, counts: Iterable[int]) -> tuple[int, ...]:
    try:
        return tuple(map(index, counts))
    except TypeError as error:
        raise InvalidInputError(f"Batch: {name}: {spell(counts)} are no whole numbers") from error
