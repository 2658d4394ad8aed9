"""When each request of a workload arrived, was scheduled first, and got its first and last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import WorkloadError
from dooly.simulation._columns import column, taken
from dooly.simulation._results import times_as_columns
from dooly.simulation._token_gaps import TokenClock
from dooly.simulation._workload import NS_PER_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._columns import Columns
    from dooly.simulation._results import RequestTimes
    from dooly.simulation._steps import Progress
    from dooly.simulation._workload import Request


class Timeline:
    """The times of requests, which go by their positions in the workload. In integer nanoseconds."""

    def __init__(self, requests: Sequence[Request]) -> None:
        """Know when requests arrive that do so at times of their own."""
        self.arrivals_ns: list[int] = column(requests, "arrival_ns").tolist()
        """Set when a request is sent that waited for another."""
        self.scheduled_ns = np.zeros(len(requests), np.int64)
        self.first_token_ns = np.zeros(len(requests), np.int64)
        self.finish_ns = np.full(len(requests), -1, np.int64)
        """-1 for those that have not finished."""
        self.tokens = TokenClock(len(requests))

    def note(self, progress: Progress, ends_ns: npt.NDArray[np.int64]) -> None:
        """Note what steps brought about that are known to have run at `ends_ns`, growing, shape (num_steps,)."""
        self.first_token_ns[progress.first_token] = ends_ns[-1]
        self.finish_ns[progress.finished] = ends_ns[-1]
        if progress.generated.size:
            self.tokens.tick(progress.generated, ends_ns)

    def rows(self, requests: Sequence[Request], positions: Sequence[int]) -> Columns[RequestTimes]:
        """Return the times of requests, which must have finished.

        Args:
            requests: The workload.
            positions: Which of them, growing.

        Raises:
            WorkloadError: One has not finished.
        """
        every = (np.array(self.arrivals_ns, np.int64), self.scheduled_ns, self.first_token_ns, self.finish_ns)
        places = np.asarray(positions, np.int64)
        times_s = [times_ns[places] / NS_PER_S for times_ns in every]
        served = taken(requests, positions)
        refuse_unfinished(served, self.finish_ns[places])
        return times_as_columns(served, times_s)


def refuse_unfinished(requests: Sequence[Request], finish_ns: npt.NDArray[np.int64]) -> None:
    """Refuse what an engine came to that is stuck: it does nothing more, and requests wait.

    Args:
        requests: Those that it was to serve.
        finish_ns: When each has finished, -1 for those that have not, shape (num_requests,).

    Raises:
        WorkloadError: One has not finished.
    """
    unfinished = np.flatnonzero(finish_ns < 0)
    if unfinished.size:
        request = requests[int(unfinished[0])]
        raise WorkloadError(
            f"request {request.request_id}: never finishes, with {request.num_prompt_tokens} prompt tokens ({unfinished.size} "
            "such requests): no step has room for it; raise max_num_batched_tokens, max_num_scheduled_tokens or num_kv_blocks"
        )
