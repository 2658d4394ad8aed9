"""A step of an engine with a KV-cache or prefill policy: what its attention reads, and which prompts are selected from."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from dooly.batch import Batch
from dooly.kv_policy import NUM_DENSE_LAYERS, SelectedPrompt, Term
from dooly.latency import SelectingBackend, asked_step_ns
from dooly.simulation._steps import PricedRun, ScheduledStep

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.kv_policy import KVPolicy
    from dooly.latency import LatencyBackend


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PolicyStep(ScheduledStep):
    """One step's work, a request an entry."""

    policy: KVPolicy
    """The policy."""
    num_unread_tokens: npt.NDArray[np.int64]
    """Computed tokens of each request that its attention reads no more, the mean over heads, shape (num_reqs,)."""
    num_prefill_tokens: npt.NDArray[np.int64]
    """Tokens that each request computes as a prompt, shape (num_reqs,)."""
    num_found_tokens: npt.NDArray[np.int64]
    """The first of them, which were found in the prefix cache, shape (num_reqs,)."""
    num_cached_half_tokens: npt.NDArray[np.int64]
    """Twice what the KV cache has to hold of the tokens computed before, half pages included, shape (num_reqs,)."""
    num_layers: int | None = None
    """Layers of attention; None for so many that the first count nothing."""

    @classmethod
    def of(cls, step: ScheduledStep, **more: object) -> Self:
        """Return a scheduled step with what the policy makes of it."""
        return cls(**{field.name: getattr(step, field.name) for field in fields(step)} | more)

    @property
    def ends_prompt(self) -> npt.NDArray[np.bool_]:
        """Whether each request's prompt has been computed with this step and not before, shape (num_reqs,)."""
        before, prefill = self.num_computed_tokens, self.num_prefill_tokens
        ends: npt.NDArray[np.bool_] = (before < prefill) & (before + self.num_new_tokens >= prefill)
        return ends

    @property
    def num_read_tokens(self) -> npt.NDArray[np.int64]:
        """Computed tokens of each request that its attention reads, shape (num_reqs,)."""
        return self.num_computed_tokens - self.num_unread_tokens

    @property
    def num_half_tokens(self) -> npt.NDArray[np.int64]:
        """Twice what the KV cache has to hold of the tokens computed before, half pages included, shape (num_reqs,)."""
        return self.num_cached_half_tokens

    @property
    def selection(self) -> tuple[KVPolicy, tuple[SelectedPrompt, ...]] | None:
        """The policy, and the prompts that the step ends and that it selects of; None where there are none."""
        if not self.policy.changes(Term.SELECTION):
            return None
        counts = np.stack([self.num_prefill_tokens, self.num_found_tokens])[:, self.ends_prompt].T.tolist()
        selected = tuple(SelectedPrompt(*ended) for ended in counts if self.policy.acts_on(ended[0]))
        return (self.policy, selected) if selected else None

    @property
    def attended(self) -> tuple[tuple[float, Batch], ...]:
        """What attention sees of a sparse prefill: segments with what each chooses, in all layers but the first."""
        if not self.policy.changes(Term.PREFILL):
            return ()
        seen: list[tuple[int, int]] = []
        rows = zip(self.num_prefill_tokens.tolist(), self.num_read_tokens.tolist(), self.num_new_tokens.tolist(), strict=True)
        for prompt, start, count in rows:
            seen += self.policy.attended(prompt, start, start + count) if start < prompt else [(count, start)]
        new, computed = zip(*seen, strict=True)
        sparse, plain = Batch(new, computed, 0), self._plain().to_batch()
        if sparse.num_query_key_pairs == plain.num_query_key_pairs:
            return ()
        whole = 0.0 if self.num_layers is None else min(1.0, NUM_DENSE_LAYERS / self.num_layers)
        return ((1 - whole, sparse), (whole, plain)) if whole else ((1.0, sparse),)

    def step_ns(self, latency: LatencyBackend) -> int:
        """Return the latency of the step with the selections behind it, in nanoseconds."""
        step_ns = asked_step_ns(latency, self.to_batch())
        if self.selection is not None and isinstance(latency, SelectingBackend):
            step_ns += latency.selection_ns(*self.selection)
        return step_ns

    def price_run(self, latency: LatencyBackend, num_steps: int) -> PricedRun:
        """Return what so many repetitions of a decode step take."""
        return self._plain().price_run(latency, num_steps)

    def to_batch(self) -> Batch:
        """Return the step as the predictors' batch: decodes with what they read, sparse prefills with what attention sees."""
        return replace(self._plain().to_batch(), attended=self.attended)

    def _plain(self) -> ScheduledStep:
        """Return the step as one over what is read."""
        rest = (self.first_scheduled, self.max_num_steps, self.num_draft_tokens)
        return ScheduledStep(self.requests, self.num_new_tokens, self.num_read_tokens, *rest)
