"""SGLang's simulator, and HiSim, from which it came, on Dooly's latencies: a predictor of their contract.

Their scheduler hands over a batch whose `reqs` carry `extend_length` (HiSim: `input_length`), the tokens that a request computes,
and `past_kv_length`, those that it has in the cache; it takes back seconds, and a negative number where there are none. Nothing
of either is imported: whatever has these attributes is priced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from dooly.adapters._wall import wall_s
from dooly.batch import Batch
from dooly.errors import OutOfDomainError
from dooly.predict import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.predict import LatencyModel

_NOT_TO_BE_HAD = -1.0


class ScheduledRequest(Protocol):
    """A request of SGLang's scheduler."""

    extend_length: int
    """Tokens that it computes in this step."""
    past_kv_length: int
    """Tokens that it has in the cache."""


class HiSimRequest(Protocol):
    """A request as HiSim names its parts."""

    input_length: int
    """Tokens that it computes in this step."""
    past_kv_length: int
    """Tokens that it has in the cache."""


class ScheduleBatch(Protocol):
    """A batch of SGLang's scheduler."""

    @property
    def reqs(self) -> Sequence[ScheduledRequest | HiSimRequest]:
        """The requests."""
        ...


class InferTimePredictor:
    """Predicts how long SGLang's batches take; hand it to the simulator in place of its own.

    Examples:
        >>> from types import SimpleNamespace as Namespace
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> batch = Namespace(reqs=[Namespace(extend_length=1, past_kv_length=1000)])
        >>> 0.002 < InferTimePredictor(latency).predict_infer_time(batch) < 0.02
        True
    """

    def __init__(self, latency: LatencyModel) -> None:
        """Take what prices the batches; an engine of the same kernels, as SGLang's are but for their attention."""
        self.latency = latency

    def predict_infer_time(self, batch: ScheduleBatch) -> float:
        """Return the latency of a batch, in seconds: 0 for an empty one, negative beyond what was measured."""
        if not batch.reqs:
            return 0.0
        asked = Batch(
            tuple(_num_new_tokens(request) for request in batch.reqs), tuple(request.past_kv_length for request in batch.reqs)
        )
        try:
            return float(wall_s(self.latency, BatchArrays.of([asked]))[0])
        except OutOfDomainError:
            return _NOT_TO_BE_HAD

    def get_metrics(self) -> dict[str, float]:
        """Return what the simulator writes beside a profile: the shares of the seconds so far by where they are from."""
        return {f"dooly_{source}": share for source, share in self.latency.provenance.items()}

    def reset_metrics(self) -> None:
        """Do nothing: the shares are those of all that was priced."""


def _num_new_tokens(request: ScheduledRequest | HiSimRequest) -> int:
    return request.extend_length if hasattr(request, "extend_length") else request.input_length
