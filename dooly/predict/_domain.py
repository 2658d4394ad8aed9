"""What a latency model was measured over: the limits of whole steps, and how much attention read within them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import DECODE_GROWTH_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dbstore import JSON
    from dooly.predict._features import BatchArrays

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far steps were measured; what attention reads grows with requests and contexts together."""

    decode_kv_tokens: float
    """Positions that all decodes of a step read."""
    prefill_pairs: float
    """Query-key pairs of all prefills of a step."""
    num_tokens: float = math.inf
    """Tokens in a step, where its limits are not what was measured."""

    @classmethod
    def of(cls, measured: Sequence[BatchArrays]) -> Reach | None:
        """Return how far attention was measured, given the batches of each operation: as far as the one that fell shortest."""
        if not measured:
            return None
        works = [batches.attention(None) for batches in measured]
        return cls(
            min(float((work.decode_kv_tokens + DECODE_GROWTH_TOKENS * work.num_decodes).max()) for work in works),
            min(float(work.prefill_pairs.max()) for work in works),
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """The largest request dimensions that were measured, or that the engine's limits allow."""

    num_tokens: int
    """Tokens in a step."""
    num_reqs: int
    """Requests in a step; those that verify drafts count once more for each."""
    context: int
    """Positions that one request reads."""
    reach: Reach | None = None
    """How far what was measured goes within them; None where nothing tells."""
    is_measured: bool = True
    """Whether the limits are what was measured, and not what the engine was told."""

    @classmethod
    def of(cls, steps: BatchArrays, attention: Sequence[BatchArrays]) -> Domain:
        """Return the domain of a model, given the batches at which steps and each attention were measured."""
        longest = int((steps.new + steps.computed).max()) + DECODE_GROWTH_TOKENS
        return cls(int(steps.num_tokens.max()) + 1, int(steps.num_reqs.max()), longest, Reach.of(attention))

    def to_json(self) -> dict[str, JSON]:
        """Return what was measured as JSON."""
        reach = None if self.reach is None else [self.reach.decode_kv_tokens, self.reach.prefill_pairs]
        return {"num_tokens": self.num_tokens, "num_reqs": self.num_reqs, "context": self.context, "reach": reach}

    @classmethod
    def from_json(cls, document: Mapping[str, JSON]) -> Domain:
        """Return the domain that `to_json` told of."""
        reach = document["reach"]
        return cls(**{**document, "reach": None if reach is None else Reach(*reach)})

    def allows(self, batches: BatchArrays) -> bool:
        """Tell whether all batches keep the limits of steps."""
        return not self._excesses(batches)

    def outside(self, batches: BatchArrays) -> npt.NDArray[np.bool_]:
        """Tell which batches exceed the limits of steps, shape (num_batches,)."""
        longest = (batches.new + batches.computed).max(axis=1)
        beyond = (batches.num_tokens > self.num_tokens) | (batches.num_sampled > self.num_reqs) | (longest > self.context)
        return np.asarray(beyond)

    def outreach(self, batches: BatchArrays) -> npt.NDArray[np.bool_]:
        """Tell which batches go beyond what was measured, shape (num_batches,)."""
        if batches.attended:
            return np.asarray(np.any([self.outreach(view) for _, view in batches.attended], axis=0))
        work, reach = batches.attention(None), self.reach
        if reach is None:
            return np.zeros(len(work.decode_kv_tokens), dtype=np.bool_)
        reads_more = (work.decode_kv_tokens > reach.decode_kv_tokens) | (work.prefill_pairs > reach.prefill_pairs)
        return np.asarray(reads_more | (batches.num_tokens > reach.num_tokens))

    def refusal(self, batches: BatchArrays, model: str) -> str:
        """Return what is wrong with batches that it does not allow, in one line."""
        beyond = self._excesses(batches)
        bound = "were measured" if self.is_measured else "are allowed"
        remedy = f"profile {model} with a larger" if self.is_measured else f"serve {model} with a larger"
        facts = ", ".join(f"{value} {what} where {limit} {bound}" for value, limit, what in beyond.values())
        return f"step: {facts}; {remedy} {' and '.join(beyond)}, or simulate with a smaller"

    @staticmethod
    def _counted(batches: BatchArrays) -> str:
        return "requests" if batches.num_draft_tokens is None else "requests and drafts"

    def _excesses(self, batches: BatchArrays) -> dict[str, tuple[int, int, str]]:
        """Return by the engine's flag what goes beyond a limit: value, limit, what it counts."""
        asked = {
            "--max-num-batched-tokens": (int(batches.num_tokens.max()), self.num_tokens, "tokens"),
            "--max-num-seqs": (int(batches.num_sampled.max()), self.num_reqs, self._counted(batches)),
            "--max-model-len": (int((batches.new + batches.computed).max()), self.context, "tokens in one request"),
        }
        return {flag: found for flag, found in asked.items() if found[0] > found[1]}
