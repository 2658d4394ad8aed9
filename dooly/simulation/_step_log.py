"""What the steps of a simulation computed, and when; `simulate` fills it where it is given one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from dooly.kv_policy import KVPolicy, SelectedPrompt
    from dooly.simulation._steps import ScheduledStep

    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class LoggedSteps:
    """A step, or several in a row that decode the same requests. Times are nanoseconds from the run's start."""

    starts_ns: Ints
    """When the device began with each, shape (num_steps,)."""
    ends_ns: Ints
    """When each had run, shape (num_steps,)."""
    num_new_tokens: Ints
    """Tokens that each request computes in a step, shape (num_reqs,)."""
    num_computed_tokens: Ints
    """Tokens that each had computed before the first, less those that a policy has dropped, shape (num_reqs,)."""
    num_half_tokens: Ints
    """Twice what the KV cache had to hold of each before the first, half pages of heads included, shape (num_reqs,)."""
    num_new_requests: int
    """How many of the requests no earlier step held."""
    num_draft_tokens: Ints | None = None
    """New tokens of each that are drafts to verify; None where none are drafted."""
    attended: tuple[tuple[float, Batch], ...] = ()
    """What attention sees, as `Batch` has it."""
    selection: tuple[KVPolicy, tuple[SelectedPrompt, ...]] | None = None
    """The policy that selects of prompts which the step ends, and these; None where there are none."""

    def batch(self, step: int) -> Batch:
        """Return what one of the steps computes."""
        drafts = () if self.num_draft_tokens is None else tuple(self.num_draft_tokens.tolist())
        computed = tuple((self.num_computed_tokens + step).tolist())
        return Batch(tuple(self.num_new_tokens.tolist()), computed, self.num_new_requests, drafts, self.attended)

    def num_kv_blocks(self, step: int, block_size: int) -> int:
        """Return how many KV blocks the requests of one of the steps fill at its end; each counts those it shares with others."""
        num_half_tokens = self.num_half_tokens + 2 * (self.num_new_tokens + step)
        return int((-(-num_half_tokens // (2 * block_size))).sum())


class StepLog:
    """The steps of a simulation, in the order run. It holds every batch: some kilobytes a step."""

    def __init__(self) -> None:
        """Start without steps."""
        self.runs: list[LoggedSteps] = []

    @classmethod
    def joined(cls, logs: Iterable[StepLog]) -> StepLog:
        """Return one log of the steps of several engines, one after the other."""
        log = cls()
        log.runs = [run for each in logs for run in each.runs]
        return log

    def add(self, starts_ns: Sequence[int] | Ints, ends_ns: Sequence[int] | Ints, step: ScheduledStep) -> None:
        """Note a step, or repetitions of it, that the device runs one after another."""
        batch = (step.num_new_tokens, step.num_read_tokens, step.num_half_tokens)
        new = len(step.first_scheduled)
        seen = (step.num_draft_tokens, step.attended, step.selection)
        self.runs.append(LoggedSteps(np.asarray(starts_ns), np.asarray(ends_ns), *batch, new, *seen))
