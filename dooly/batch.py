"""A scheduled batch: what one engine step works on.

The word every layer above tracing shares: measuring realises batches, predictors price them, the simulator schedules them.
Holds no torch and no engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from dooly.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Batch:
    """One engine step's work, a request an entry, in the order scheduled.

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
    """Shares of the attention layers, adding up to 1, each with the batch as its attention sees it: as many tokens, of requests
    that read otherwise than they hold, as where a policy prefills sparsely; none where it sees this very batch."""

    def __post_init__(self) -> None:
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
        if self.num_new_requests is None:
            object.__setattr__(self, "num_new_requests", self.num_computed_tokens.count(0))
        if self.num_draft_tokens and (
            len(self.num_draft_tokens) != len(self.num_new_tokens)
            or any(not 0 <= drafts < new for drafts, new in zip(self.num_draft_tokens, self.num_new_tokens, strict=True))
        ):
            raise InvalidInputError(
                f"Batch: num_draft_tokens {self.num_draft_tokens} must be one count a request, at least 0 and below its "
                "num_new_tokens; the token ahead of the drafts is new too"
            )
        if any(view.num_tokens != self.num_tokens for _, view in self.attended):
            raise InvalidInputError(
                f"Batch: attended: attention must see the {self.num_tokens} tokens of the step, no more and no less"
            )
        if not 0 <= self.num_new_requests <= len(self.num_new_tokens):
            raise InvalidInputError(f"Batch: num_new_requests {self.num_new_requests} is outside 0..{len(self.num_new_tokens)}")

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
