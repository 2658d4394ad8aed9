"""The contract between latency predictors and simulators.

`LatencyBackend` is what `dooly.simulation` asks of a predictor; `dooly.predict.LatencyModel` meets it, and so may any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dooly.batch import Batch


class LatencyBackend(Protocol):
    """Predicts how long engine steps take. Times are integer nanoseconds."""

    def step_ns(self, batch: Batch) -> int:
        """Return the latency of one step over `batch`."""
        ...

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Return the latencies of `num_steps` consecutive decode steps over the same requests.

        `num_computed_tokens` has shape (num_reqs,) and holds the first step's context lengths; each grows by one a step. The
        result has shape (num_steps,) and equals `step_ns` of each step's batch.
        """
        ...
