"""The contract between latency predictors and simulators.

`LatencyBackend` is what `dooly.simulation` asks of a predictor; `dooly.predict.LatencyModel` meets it, and so may any other.
`HostTimes` is what the engine's host adds where it schedules ahead and its device waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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


@dataclass(frozen=True, slots=True)
class HostTimes:
    """What an engine's host takes to launch a step on a device, in integer nanoseconds.

    vLLM captures decodes whole in CUDA graphs, and steps with prompts in pieces around attention, both up to a number of tokens;
    beyond it each kernel is launched on its own. While the device is busier than the host, none of this shows.
    """

    prepare_ns: int = 0
    """From scheduling a step to its first kernel."""
    whole_ns: int = 0
    """All of a step of decodes, captured whole."""
    pieces_ns: int = 0
    """All of a step with prompts, captured in pieces."""
    plain_ns: int = 0
    """All of a step that is not captured."""
    max_captured_tokens: int = 512
    """Tokens of the largest step that is captured."""

    def launch_ns(self, num_tokens: int, *, only_decodes: bool) -> int:
        """Return what launching a step takes."""
        if num_tokens > self.max_captured_tokens:
            return self.plain_ns
        return self.whole_ns if only_decodes else self.pieces_ns

    def scaled(self, factor: float) -> HostTimes:
        """Return the times of a model with so many times the layers: each has kernels of its own to launch."""
        whole, pieces, plain = (round(factor * ns) for ns in (self.whole_ns, self.pieces_ns, self.plain_ns))
        return replace(self, whole_ns=whole, pieces_ns=pieces, plain_ns=plain)
