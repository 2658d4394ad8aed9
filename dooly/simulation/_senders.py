"""Who sends requests: arrivals at times of their own, or users who each wait for the answer to their last."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dooly.simulation._workload import Workload


class Senders:
    """Tells which requests are sent, in the workload's order, each once."""

    def __init__(self, workload: Workload) -> None:
        """Start with none sent."""
        self._arrivals_ns = [request.arrival_ns for request in workload.requests]
        self._is_closed = workload.concurrency is not None
        self._num_sent = 0
        self._num_first = len(self._arrivals_ns) if workload.concurrency is None else workload.concurrency

    def first(self) -> Iterator[tuple[int, int]]:
        """Yield the positions and arrivals of the requests that wait for no other, in nanoseconds."""
        for request in self._next(self._num_first):
            yield request, self._arrivals_ns[request]

    def next(self, num_finished: int) -> range:
        """Return the positions of the requests that are sent because so many others have just ended."""
        return self._next(num_finished if self._is_closed else 0)

    def _next(self, number: int) -> range:
        first, self._num_sent = self._num_sent, min(self._num_sent + number, len(self._arrivals_ns))
        return range(first, self._num_sent)
