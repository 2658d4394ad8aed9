from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.latency import LatencyBackend, LinearLatency, keeps_account

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.batch import Batch

    Ints = npt.NDArray[np.int64]


class Law(LatencyBackend):
    """A predictor that knows single steps only."""

    def step_ns(self, batch: Batch) -> int:
        """Take as many nanoseconds as the digits say."""
        return 1000 * batch.num_new_requests + sum(batch.num_computed_tokens)


def test_a_run_of_decodes_is_its_steps() -> None:
    """A predictor without an answer of its own for runs of decodes gives what it gives for each step, in which none begins."""
    found = Law().decode_run_ns(np.array([0, 40]), 3)
    assert found.tolist() == [40, 42, 44]
    assert found.dtype == np.int64


class Keeper(Law):
    """A predictor that keeps account."""

    def __init__(self) -> None:
        self.accounts: list[list[float]] = []

    def quote_ns(self, batch: Batch) -> int:
        """Quote what a step takes."""
        return Law.step_ns(self, batch)

    def quote_run(self, num_computed_tokens: Ints, num_steps: int) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Quote what decodes take, from one source."""
        steps_ns = Law.decode_run_ns(self, num_computed_tokens, num_steps)
        return steps_ns, np.stack([steps_ns, 0 * steps_ns], axis=1).astype(np.float64)

    def account(self, priced_ns: npt.NDArray[np.float64]) -> None:
        """Keep it."""
        self.accounts.append(priced_ns.tolist())

    def account_estimate(self, latency_ns: float) -> None:
        """Keep it."""
        self.accounts.append([latency_ns])


class Twice(Keeper):
    """Prices decodes anew, and does not quote them so."""

    def decode_run_ns(self, num_computed_tokens: Ints, num_steps: int) -> Ints:
        """Take twice as long."""
        return 2 * super().decode_run_ns(num_computed_tokens, num_steps)


def test_only_a_predictor_that_quotes_its_own_prices_keeps_account() -> None:
    """One that quotes nothing does not, nor a subclass whose prices are others than what is quoted for it."""
    assert [keeps_account(latency) for latency in (Law(), Keeper(), Twice(), LinearLatency(1.0))] == [False, True, False, False]
