"""One engine step in the simulator's terms: what is scheduled, and what it brings about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from dooly.batch import Batch
from dooly.latency import asked_step_ns, checked_run_ns, keeps_account

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    import numpy.typing as npt

    from dooly.kv_policy import KVPolicy, SelectedPrompt
    from dooly.latency import HostTimes, LatencyBackend
    from dooly.power_cap import PacedDevice


class PricedRun(NamedTuple):
    """Repetitions of a decode step as they are priced, before it is known how many will run."""

    steps_ns: npt.NDArray[np.int64]
    """Latencies in nanoseconds, shape (num_steps,)."""
    accounts: tuple[tuple[Callable[[npt.NDArray[np.float64]], None], npt.NDArray[np.float64]], ...] = ()
    """Who keeps account of them, and of what for each, shape (num_steps, num_sources + 1)."""

    def account(self, num_steps: int) -> None:
        """Have account kept of the first so many: these are run."""
        for account, priced_ns in self.accounts:
            account(priced_ns[:num_steps].sum(axis=0))


@dataclass(frozen=True, slots=True, eq=False)
class ScheduledStep:
    """One step's work, a request an entry, in the order scheduled."""

    requests: npt.NDArray[np.int64]
    """Positions in the workload, shape (num_reqs,)."""
    num_new_tokens: npt.NDArray[np.int64]
    """Tokens computed in this step, shape (num_reqs,)."""
    num_computed_tokens: npt.NDArray[np.int64]
    """Tokens computed before or found in the cache, shape (num_reqs,)."""
    first_scheduled: list[int]
    """Positions of the requests that no earlier step held."""
    max_num_steps: int
    """How many steps in a row decode exactly these requests, this one included, unless another is let in while they run, as one
    that arrives or whose KV cache has been moved; 1 for other steps."""
    num_draft_tokens: npt.NDArray[np.int64] | None = None
    """New tokens that are drafts to verify, shape (num_reqs,); None where none are drafted."""

    @property
    def num_read_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens computed before that attention reads, shape (num_reqs,): all, unless a policy drops some."""
        return self.num_computed_tokens

    @property
    def num_half_tokens(self) -> npt.NDArray[np.int64]:
        """Twice what the KV cache has to hold of the tokens computed before, shape (num_reqs,): all without a policy."""
        return 2 * self.num_computed_tokens

    @property
    def attended(self) -> tuple[tuple[float, Batch], ...]:
        """What attention sees, as `Batch` has it; nothing where it sees the batch itself."""
        return ()

    @property
    def selection(self) -> tuple[KVPolicy, tuple[SelectedPrompt, ...]] | None:
        """The policy that selects of prompts which the step ends, and these; None where there are none."""
        return None

    def step_ns(self, latency: LatencyBackend) -> int:
        """Return the latency of the step, in nanoseconds."""
        return asked_step_ns(latency, self.to_batch())

    def price_run(self, latency: LatencyBackend, num_steps: int) -> PricedRun:
        """Return what so many repetitions of a decode step take, of which account is to be kept for those that run."""
        if not keeps_account(latency):
            found = latency.decode_run_ns(self.num_computed_tokens, num_steps)
            return PricedRun(checked_run_ns(latency, "decode_run_ns", found, num_steps))
        steps_ns, priced_ns = latency.quote_run(self.num_computed_tokens, num_steps)
        return PricedRun(checked_run_ns(latency, "quote_run", steps_ns, num_steps), ((latency.account, priced_ns),))

    @property
    def num_tokens(self) -> int:
        """Tokens of all requests."""
        return int(self.num_new_tokens.sum())

    def draws(self, devices: Sequence[PacedDevice]) -> bool:
        """Tell whether it draws on what a device's power limit allows at full clocks."""
        return devices[0].draws(self.num_tokens)

    def run_ns(self, latency: LatencyBackend, devices: Sequence[PacedDevice], start_ns: int) -> int:
        """Run it on its device, and return what it takes if it starts then."""
        return devices[0].run_ns(start_ns, self.step_ns(latency), self.num_tokens)

    def launch_ns(self, host: HostTimes, decode_length: int = 1) -> int:
        """Return what launching the step takes the host, in nanoseconds.

        One graph holds a whole step where every request computes `decode_length` tokens: one, or one with all its drafts.
        """
        only_decodes = bool((self.num_new_tokens == decode_length).all())
        return host.launch_ns(self.num_tokens, only_decodes=only_decodes)

    def to_batch(self) -> Batch:
        """Return the step as the predictors' batch."""
        drafts = () if self.num_draft_tokens is None else tuple(self.num_draft_tokens.tolist())
        counts = (tuple(self.num_new_tokens.tolist()), tuple(self.num_computed_tokens.tolist()), len(self.first_scheduled))
        return Batch(*counts, drafts)


class Progress(NamedTuple):
    """What steps in a row bring about once they have run, as positions in the workload."""

    requests: npt.NDArray[np.int64]
    """Requests that they hold."""
    num_computed_tokens: npt.NDArray[np.int64]
    """Tokens of each of these that are computed behind the last step."""
    first_token: npt.NDArray[np.int64]
    """Requests whose first token comes out."""
    finished: npt.NDArray[np.int64]
    """Requests whose last token comes out."""
    generated: npt.NDArray[np.int64]
    """Requests that get a token, at the end of each of the steps."""
    num_steps: int = 1
    """How many steps these are."""
    launch: int = 0
    """Which launch of its scheduler this ends, from 1, where the scheduler has to know; 0 where it need not."""

    def split(self) -> tuple[Progress, ...]:
        """Return what all steps but the last bring about, and what the last does."""
        if self.num_steps == 1:
            return (self,)
        none = self.finished[:0]
        before = Progress(self.requests, self.num_computed_tokens - 1, none, none, self.generated, self.num_steps - 1)
        return before, self._replace(num_steps=1)
