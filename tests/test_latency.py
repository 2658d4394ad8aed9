from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import dooly
from dooly.errors import InvalidInputError
from dooly.latency import HostTimes, LatencyBackend, LinearLatency, keeps_account, slowed_host

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


def test_a_predictor_that_knows_steps_only_has_neither_host_nor_power_limit() -> None:
    """Whoever asks gets None, and a simulation is that of a device which waits for nobody and is never slowed."""
    assert (Law().host, Law().power_cap) == (None, None)
    requests = dooly.parse_workload("closed:concurrency=1,requests=1,prompt=8,output=1")
    config = dooly.simulation.SchedulerConfig(max_model_len=64, num_kv_blocks=64)
    assert dooly.simulate(requests, Law(), config).duration_s == 1000 / 1e9


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


TIMES = HostTimes(1_000, 2_000, 4_000, 8_000, 512)


def test_a_model_of_other_layers_is_launched_by_them() -> None:
    """Pieces and kernels count by layers, experts beside where nothing is captured; decodes are one graph whatever the model."""
    assert TIMES.of_layers(1.5, experts_ns=700.4) == HostTimes(1_000, 2_000, 6_000, 12_700, 512)
    assert TIMES.of_layers(0.1) == HostTimes(1_000, 2_000, 1_000, 1_000, 512)


def test_a_slower_host_takes_longer_for_everything() -> None:
    """All of its times grow alike, and the largest graph stays."""
    assert slowed_host(TIMES, 1.5) == HostTimes(1_500, 3_000, 6_000, 12_000, 512)
    assert slowed_host(TIMES, None) is TIMES
    assert slowed_host(None, None) is None


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1001])
def test_what_no_host_is_slowed_by_is_refused(factor: float) -> None:
    """The message names the flag."""
    with pytest.raises(InvalidInputError, match=r"--host-slowdown: .* is no number above 0 and up to 1000"):
        slowed_host(TIMES, factor)


def test_where_no_host_is_known_none_is_slowed() -> None:
    """Nothing would come of it."""
    with pytest.raises(InvalidInputError, match="--host-slowdown: nobody measured a host"):
        slowed_host(None, 1.5)
