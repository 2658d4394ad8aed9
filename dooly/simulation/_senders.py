"""Who sends requests: arrivals at times of their own, users who each wait for the answer to their last, and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dooly.simulation._workload import Workload


class Senders:
    """Tells which requests are sent and when, each once. Requests go by their positions in the workload."""

    def __init__(self, workload: Workload) -> None:
        """Start with none sent."""
        self._requests = workload.requests
        positions = {request.request_id: position for position, request in enumerate(workload.requests) if request.turn}
        self._followers: dict[int, list[int]] = {}
        """The turns that wait for the end of each request."""
        unasked: list[int] = []
        for position, request in enumerate(workload.requests):
            if request.turn is None or request.turn.follows is None:
                unasked.append(position)
            else:
                self._followers.setdefault(positions[request.turn.follows], []).append(position)
        self._num_first = len(unasked) if workload.concurrency is None else workload.concurrency
        self._to_come = iter(unasked)

    def first(self) -> Iterator[tuple[int, int]]:
        """Yield the requests that wait for no other, and when they arrive in nanoseconds."""
        for _, position in zip(range(self._num_first), self._to_come, strict=False):
            yield position, self._requests[position].arrival_ns

    def next(self, finished: Iterable[int], now_ns: int) -> Iterator[tuple[int, int]]:
        """Yield the requests that are sent because these have just ended, and when they arrive in nanoseconds."""
        for ended in finished:
            for position in self._followers.get(ended, ()):
                request = self._requests[position]
                assert request.turn is not None
                yield position, max(request.arrival_ns, now_ns + request.turn.think_ns)
            if (position := next(self._to_come, -1)) >= 0:
                yield position, now_ns
