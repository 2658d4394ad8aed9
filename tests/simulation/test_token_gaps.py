"""Inter-token latency: every gap between two tokens of a request, however many steps are priced at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.latency import LatencyBackend
from dooly.simulation import SchedulerConfig, parse_workload, simulate
from dooly.simulation._token_gaps import TokenClock, TokenGaps

if TYPE_CHECKING:
    from dooly.batch import Batch

PERCENTILES = (50, 90, 95, 99)


class Growing(LatencyBackend):
    """A step costs a microsecond a position that it reads, and a decode run the same step by step."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        return 1000 * (sum(batch.num_computed_tokens) + batch.num_tokens)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 50)), min_size=1, max_size=30))
def test_statistics_are_those_of_all_gaps(pairs: list[tuple[int, int]]) -> None:
    """Mean and percentiles equal NumPy's over the gaps one by one."""
    gaps, counts = (np.array(values, dtype=np.int64) for values in zip(*pairs, strict=True))
    every = np.repeat(gaps, counts) / 1e9
    expected = (every.mean(), *np.percentile(every, PERCENTILES))
    assert TokenGaps(gaps, counts).statistics_s(PERCENTILES) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_no_gap_has_no_statistics() -> None:
    """Where each request has one token, there is nothing between tokens."""
    clock = TokenClock(2)
    assert clock.gaps().statistics_s(PERCENTILES) is None
    clock.tick(np.array([0, 1]), np.array([5]))
    assert clock.gaps().statistics_s(PERCENTILES) is None


def test_gaps_by_hand() -> None:
    """Two requests, the second from the second step on; the last two steps are priced together."""
    clock = TokenClock(2)
    clock.tick(np.array([0]), np.array([10]))
    clock.tick(np.array([0, 1]), np.array([25]))
    clock.tick(np.array([0, 1]), np.array([45, 50]))
    found = clock.gaps()
    assert sorted(np.repeat(found.gaps_ns, found.counts).tolist()) == [5, 5, 15, 20, 20]


@pytest.mark.parametrize("blocks", [4096, 60])
def test_gaps_add_up_to_what_requests_wait(blocks: int) -> None:
    """As many gaps as output tokens after the first, and their sum is the time from first to last tokens, preemptions or not."""
    workload = parse_workload("poisson:rate=100,requests=40,prompt=20-300,output=1-60,seed=2")
    config = SchedulerConfig(max_model_len=512, num_kv_blocks=blocks, max_num_seqs=16, max_num_batched_tokens=256)
    result = simulate(workload, Growing(), config)
    assert (result.num_preemptions > 0) == (blocks == 60)
    gaps = result.token_gaps
    assert gaps is not None
    assert gaps.counts.sum() == sum(r.num_output_tokens - 1 for r in workload.requests)
    waited_s = sum(row.finish_s - row.first_token_s for row in result.rows)
    assert gaps.gaps_ns @ gaps.counts / 1e9 == pytest.approx(waited_s)
    assert result.summary()["itl_s"]["mean"] == pytest.approx(waited_s / gaps.counts.sum())
