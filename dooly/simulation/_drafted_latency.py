"""What steps take where a drafter runs beside the model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dooly.latency import LatencyBackend, asked_step_ns, keeps_account

if TYPE_CHECKING:
    from dooly.batch import Batch
    from dooly.speculation import SpeculativeConfig


class DraftedLatency(LatencyBackend):
    """Adds the drafter's passes to a model's steps, by `SpeculativeConfig.drafting`: where account is kept, as an estimate."""

    def __init__(self, latency: LatencyBackend, config: SpeculativeConfig) -> None:
        """Take what prices the model's steps, and how tokens are drafted."""
        self._latency = latency
        self._config = config

    def step_ns(self, batch: Batch) -> int:
        """Return the latency of one step and of drafting behind it, in nanoseconds."""
        model_ns = asked_step_ns(self._latency, batch)
        if not keeps_account(self._latency):
            return model_ns + round(self._config.drafting(batch, model_ns, partial(asked_step_ns, self._latency)))
        drafting_ns = round(self._config.drafting(batch, model_ns, self._latency.quote_ns))
        self._latency.account_estimate(drafting_ns)
        return model_ns + drafting_ns
