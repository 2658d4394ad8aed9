from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.latency import LatencyBackend

if TYPE_CHECKING:
    from dooly.batch import Batch


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
