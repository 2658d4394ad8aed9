"""A KV-cache or prefill policy as an engine is told of it: which by name, at what budget, and what it makes of a prompt's tokens.

The word that the policies, the predictors and the simulator share. Holds no torch and no engine: `dooly.kv` has the policies
themselves, and what they choose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW_SIZE = 32
"""Last tokens of a prompt, which policies go by and always keep."""
SEGMENT_SIZE = 512
"""Queries that choose blocks of keys together in a sparse prefill."""
CRITICAL_BLOCK_SIZE = 32
"""Keys that are chosen together."""
NUM_DENSE_TOKENS = 4096
"""First tokens of a prompt whose attention a sparse prefill computes whole."""
NUM_DENSE_LAYERS = 1
"""First layers whose attention it computes whole."""


class Scope(StrEnum):
    """Whose tokens compete with each other."""

    HEAD = "head"
    LAYER = "layer"
    MODEL = "model"


class Term(StrEnum):
    """What a policy changes in a serving engine, each of which can be simulated without the others."""

    CACHING = "no prefix caching"
    """Blocks that lack some of a prompt's tokens are found by no other request, and by none that was preempted."""
    SELECTION = "selection"
    """Scoring and choosing take time when a prompt has been computed, or while it is."""
    READS = "reads"
    """Tokens that are generated attend to what is kept."""
    BLOCKS = "blocks"
    """What is not kept makes room in the KV cache."""
    PREFILL = "sparse prefill"
    """A prompt's tokens attend to fewer of those before them."""


class HeadSizes(NamedTuple):
    """The sizes of one rank's attention that a selection's cost depends on."""

    num_heads: int
    """Query heads."""
    num_kv_heads: int
    """Key/value heads."""
    head_dim: int
    """Size of a head."""
    hidden_size: int
    """Size of a token's state."""


class SelectedPrompt(NamedTuple):
    """A prompt that a policy selects of."""

    num_tokens: int
    """Its tokens."""
    num_found_tokens: int = 0
    """The first of them, which were found in the prefix cache: a sparse prefill chooses nothing for these."""


KEPT_BY: Mapping[str, Scope | None] = {
    "snapkv": Scope.HEAD,
    "adakv": Scope.LAYER,
    "criticalkv": Scope.HEAD,
    "critical-adakv": Scope.LAYER,
    "defensivekv": Scope.LAYER,
    "layer-defensivekv": Scope.MODEL,
    "laprox": Scope.MODEL,
    "critiprefill": None,
}
"""The policies of `dooly.kv.POLICIES`, and who shares the budget of kept tokens; None where all are kept."""
_DROPPING = (Term.CACHING, Term.SELECTION, Term.READS, Term.BLOCKS)
_SPARSE = (Term.SELECTION, Term.PREFILL)


_BY_SPELLING = {name.replace("-", ""): name for name in KEPT_BY}


def known_name(name: object) -> str | None:
    """Return a policy's name as `KEPT_BY` has it, by any case and with hyphens or without; None where there is none."""
    return _BY_SPELLING.get(str(name).lower().replace("-", ""))


def share_of(number: int, share: float) -> int:
    """Return a share of a number, rounded down; the share counts as the decimal fraction that was written."""
    exact = Fraction(str(share))
    return number * exact.numerator // exact.denominator


def check_budget(budget: float, place: str = "budget") -> None:
    """Refuse a budget that is no share.

    Args:
        budget: The budget.
        place: What messages call it.

    Raises:
        InvalidInputError: It is no number above 0 and up to 1.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise InvalidInputError(
            f"{place}: {spell(budget)} is no number; give the share of a prompt's tokens that are kept, as 0.2"
        )
    if not 0 < budget <= 1:
        raise InvalidInputError(
            f"{place}: {spell(budget)} does not lie above 0 and up to 1; it is the share of a prompt's tokens that are kept"
        )


@dataclass(frozen=True, slots=True)
class KVPolicy:
    """A policy of a simulated engine.

    A prompt whose share has no room for the window is kept whole, and so is one that is as short as CritiPrefill computes whole.
    At budget 1 nothing changes.

    Raises:
        InvalidInputError: There is no such policy, the budget is no share, or it has no such term.

    Examples:
        >>> policy = dooly.kv_policy.KVPolicy("snapkv", 0.2)
        >>> policy.num_kept(32_768), policy.num_kept(100)
        (6553, 100)
    """

    name: str
    """A name of `dooly.kv.POLICIES`, by any case and with hyphens or without; kept as it stands there."""
    budget: float
    """Share of a prompt's tokens that are kept, the mean over heads; for CritiPrefill, that segments attend to besides."""
    terms: tuple[Term, ...] | None = None
    """What counts, for what each contributes; None for all that the policy changes."""

    def __post_init__(self) -> None:
        if (name := known_name(self.name)) is None:
            raise InvalidInputError(f"KVPolicy: name: {spell(self.name)} is not one of {', '.join(KEPT_BY)}")
        object.__setattr__(self, "name", name)
        check_budget(self.budget, "KVPolicy: budget")
        if self.terms is not None and not {*self.terms} <= {*self.all_terms}:
            raise InvalidInputError(f"KVPolicy: terms of {self.name} are {', '.join(self.all_terms)}, got {self.terms}")

    def __str__(self) -> str:
        return f"{self.name} at {self.budget:g}"

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """All that the policy changes."""
        return _SPARSE if self.scope is None else _DROPPING

    @property
    def scope(self) -> Scope | None:
        """Who shares the budget of kept tokens; None where all are kept."""
        return KEPT_BY[self.name]

    @property
    def is_even(self) -> bool:
        """Whether all heads keep as many tokens, so that whole blocks get free."""
        return self.scope in {None, Scope.HEAD}

    def changes(self, term: Term) -> bool:
        """Tell whether something counts."""
        return self.budget < 1 and term in (self.all_terms if self.terms is None else self.terms)

    def one_by_one(self) -> tuple[KVPolicy, ...]:
        """Return the policy with no term, with its first, its first two, and so on."""
        terms = self.all_terms
        return tuple(replace(self, terms=terms[:number]) for number in range(len(terms) + 1))

    def num_kept(self, num_tokens: int) -> int:
        """Return how many of a prompt's tokens each head keeps, the mean over heads."""
        kept = share_of(num_tokens, self.budget)
        return num_tokens if self.scope is None or kept < WINDOW_SIZE else kept

    def acts_on(self, num_tokens: int) -> bool:
        """Tell whether a prompt of so many tokens is long enough for the policy to change anything."""
        if self.scope is None:
            last = (num_tokens - 1) // SEGMENT_SIZE * SEGMENT_SIZE - SEGMENT_SIZE  # of those that choose among what is before
            return self.budget < 1 and last >= NUM_DENSE_TOKENS and 0 < self._num_critical_tokens(num_tokens) < last
        return self.num_kept(num_tokens) < num_tokens

    def _num_critical_tokens(self, num_tokens: int) -> int:
        return share_of(num_tokens, self.budget) // CRITICAL_BLOCK_SIZE * CRITICAL_BLOCK_SIZE

    def attended(self, num_tokens: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Return what a sparse prefill computes of a prompt's tokens from `start` to `stop`: queries, and keys before the first.

        Each entry is a segment's part that attends to so many earlier tokens, and causally to itself.

        Args:
            num_tokens: Tokens of the whole prompt.
            start: First token.
            stop: One behind the last.
        """
        if not self.acts_on(num_tokens) or stop <= NUM_DENSE_TOKENS:
            return [(stop - start, start)]
        found = [(NUM_DENSE_TOKENS - start, start)] if start < NUM_DENSE_TOKENS else []
        place = max(start, NUM_DENSE_TOKENS)
        while place < stop:
            segment = place - place % SEGMENT_SIZE
            end = min(segment + SEGMENT_SIZE, stop)
            is_last = segment + SEGMENT_SIZE >= num_tokens
            far = segment if is_last else min(self._num_critical_tokens(num_tokens), segment)
            found.append((end - place, far + place - segment))
            place = end
        return found
