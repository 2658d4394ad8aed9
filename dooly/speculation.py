"""Speculative decoding: how an engine drafts tokens, and how many of them it accepts.

The word that the engine's settings, the predictors and the simulator share. Holds no torch and no engine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dooly.batch import Batch
from dooly.errors import InvalidInputError, spell

if TYPE_CHECKING:
    from collections.abc import Callable

NGRAM_METHODS = ("ngram", "ngram_gpu")
"""Methods that look drafts up in the request's own tokens: no model runs."""
HEAD_METHODS = ("eagle", "eagle3", "mtp")
"""Methods with a head of one layer that reads the model's hidden states, and has keys and values of its own."""
DRAFTER_METHODS = ("eagle", "eagle3")
"""Those of them whose head is a model of its own, which the engine must be given."""
_METHODS = (*NGRAM_METHODS, *HEAD_METHODS)
_SEEDS = 1 << 64
"""How many seeds there are."""
_READ = ("method", "num_speculative_tokens", "synthetic_acceptance_rates", "synthetic_acceptance_length")
_WITHOUT_EFFECT = ("model", "rejection_sample_method", "prompt_lookup_min", "prompt_lookup_max")
"""Keys of the engine's that say which drafts come, not how many nor when."""


@dataclass(frozen=True, slots=True)
class SpeculativeConfig:
    """How an engine drafts tokens and how many it accepts, under vLLM's names where it has them.

    Raises:
        InvalidInputError: The method is none that can be simulated, a number is out of its range, or a method that runs a model
            of its own says nothing of what that costs.

    Examples:
        >>> dooly.speculation.SpeculativeConfig("ngram", 3, (0.8, 0.5, 0.3)).acceptance_length
        2.6
    """

    method: str
    """`ngram` or `ngram_gpu`, `eagle`, `eagle3` or `mtp`."""
    num_speculative_tokens: int
    """Tokens drafted for each request and step."""
    acceptance_rates: tuple[float, ...]
    """How often the draft at each position is accepted, of all drafts proposed: it and those before it. As `vllm bench serve`
    prints per-position acceptance; never growing."""
    draft_cost: float | None = None
    """What one pass of the drafter takes, as a fraction of the model's own step over the same tokens: the cost coefficient c of
    Leviathan et al. (2023). None where no model drafts."""
    seed: int = 0
    """Decides, with the request and the place in its answer, how many drafts are accepted."""

    def __post_init__(self) -> None:
        place = "--speculative-config"
        if self.method not in _METHODS:
            raise InvalidInputError(
                f"{place}: method {spell(self.method)} cannot be simulated; choose one of {', '.join(_METHODS)}"
            )
        number, rates = self.num_speculative_tokens, self.acceptance_rates
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidInputError(f"{place}: num_speculative_tokens must be a whole number of at least 1, got {spell(number)}")
        if len(rates) != number or any(not 0 <= rate <= 1 for rate in rates) or any(b > a for a, b in pairwise(rates)):
            raise InvalidInputError(
                f"{place}: acceptance rates must be {number} numbers from 0 to 1 that never grow, one a draft token, got "
                f"{', '.join(f'{rate:g}' for rate in rates) or 'none'}"
            )
        if self.method not in NGRAM_METHODS and self.draft_cost is None:
            raise InvalidInputError(
                f"--draft-cost: {self.method} drafts by a model of its own, which is not free; give what one of its passes takes "
                "as a fraction of the model's step, as 0.05"
            )
        if self.draft_cost is not None and (self.method in NGRAM_METHODS or not 0 <= self.draft_cost < 1):
            raise InvalidInputError(
                f"--draft-cost: must lie from 0 to below 1, and be left out for {' and '.join(NGRAM_METHODS)}, got "
                f"{self.draft_cost:g} for {self.method}"
            )

        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < _SEEDS:
            raise InvalidInputError(f"SpeculativeConfig: seed must be a whole number of 0..2**64-1, got {spell(self.seed)}")

    @classmethod
    def parse(cls, text: str, acceptance_rate: str | None = None, draft_cost: float | None = None) -> SpeculativeConfig:
        """Return what vLLM's `--speculative-config` says, in JSON, and Dooly's flags beside it.

        Args:
            text: A JSON object with `method` and `num_speculative_tokens`, and where vLLM itself is told how many drafts to
                accept, `synthetic_acceptance_rates` or `synthetic_acceptance_length`.
            acceptance_rate: In place of these: one number, how often a draft is accepted where those before it are (Leviathan's
                alpha); or one for each position, as `acceptance_rates`.
            draft_cost: As the field.

        Raises:
            InvalidInputError: It is no such object, a key would change the schedule or the price in a way that is not simulated,
                or the acceptance is given not once.
        """
        place = "--speculative-config"
        try:
            given = json.loads(text)
        except ValueError as error:
            raise InvalidInputError(f"{place}: {spell(text)} is no JSON ({error}); give an object as vLLM takes it") from error
        if not isinstance(given, dict):
            raise InvalidInputError(f"{place}: {spell(text)} is no JSON object; give one as vLLM takes it")
        unknown = [key for key in given if key not in {*_READ, *_WITHOUT_EFFECT}]
        if unknown:
            raise InvalidInputError(f"{place}: {unknown[0]} is not simulated; leave it out, or give {', '.join(_READ)}")
        method, number = given.get("method"), given.get("num_speculative_tokens")
        if isinstance(method, str) and method.endswith("_mtp"):
            method = "mtp"
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidInputError(f"{place}: num_speculative_tokens must be a whole number of at least 1, got {spell(number)}")
        rates = _rates(given, number, acceptance_rate)
        return cls(str(method), number, rates, draft_cost)

    def __str__(self) -> str:
        """Return what `vllm serve --speculative-config` takes; how many drafts are accepted is the model's matter there."""
        return json.dumps({"method": self.method, "num_speculative_tokens": self.num_speculative_tokens})

    @property
    def acceptance_length(self) -> float:
        """Mean tokens that a verified step brings: the accepted drafts, and the one that the model itself samples."""
        return 1 + sum(self.acceptance_rates)

    @property
    def num_lookahead_tokens(self) -> int:
        """Tokens behind those of a step that the drafter writes keys and values for."""
        return self.num_speculative_tokens if self.method in HEAD_METHODS else 0

    @property
    def drops_last_block(self) -> bool:
        """Whether the last block found in the cache is computed again, as the drafter needs hidden states there."""
        return self.method in HEAD_METHODS

    @property
    def allows_async_scheduling(self) -> bool:
        """Whether vLLM (0.32) schedules ahead with this method: not where drafts are looked up on its host."""
        return self.method != "ngram"

    def drafting(self, batch: Batch, model: float, price: Callable[[Batch], float]) -> float:
        """Return what drafting behind a step takes, in the unit of what the model takes.

        A head's first pass goes over all tokens of the step, as it needs keys and values for them; each of the others over one
        token of each request. Looking drafts up takes the device nothing.

        Args:
            batch: The step.
            model: What the model takes for it.
            price: Tells what the model takes for any step.
        """
        if not self.draft_cost:
            return 0.0
        passes, num_more = model, self.num_speculative_tokens - 1
        if num_more:
            ends = tuple(new + computed for new, computed in zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
            passes += num_more * price(Batch((1,) * batch.num_reqs, ends, 0))
        return self.draft_cost * passes


def _rates(given: dict[str, Any], number: int, acceptance_rate: str | None) -> tuple[float, ...]:
    """Return the acceptance rates by position, from whichever way they are given."""
    known = {"--acceptance-rate": acceptance_rate} | {key: given.get(key) for key in _READ[2:]}
    named = [name for name, value in known.items() if value is not None]
    if len(named) != 1:
        raise InvalidInputError(
            f"--acceptance-rate: say once how many are accepted, as 0.7 or 0.8,0.6,0.4; got {' and '.join(named) or 'none'}"
        )
    value = known[named[0]]
    if named[0] == "synthetic_acceptance_rates":
        parts = value if isinstance(value, list) else [value]
    elif named[0] == "synthetic_acceptance_length":
        parts = _evenest(value, number)
    else:
        parts = str(value).split(",")
    try:
        rates = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{named[0]}: {spell(value)} must be numbers from 0 to 1, as 0.7 or 0.8,0.6,0.4") from error
    if named[0] == "--acceptance-rate" and len(rates) == 1:
        return tuple(rates[0] ** (position + 1) for position in range(number))
    return rates


def _evenest(length: Any, number: int) -> list[float]:  # noqa: ANN401 - JSON
    """Return the rates by which every step brings about as many tokens, as vLLM takes a mean length."""
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not 1 <= length <= number + 1:
        raise InvalidInputError(f"synthetic_acceptance_length: must lie in 1..{number + 1}, got {spell(length)}")
    return [min(max(length - 1 - position, 0.0), 1.0) for position in range(number)]
