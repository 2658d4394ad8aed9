"""Who sends requests: arrivals at times of their own, users who each wait for the answer to their last, and conversations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.simulation._columns import column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from dooly.simulation._workload import Turn, Workload


class Senders:
    """Tells which requests are sent and when, each once. Requests go by their positions in the workload."""

    def __init__(self, workload: Workload) -> None:
        """Start with none sent."""
        self._arrivals_ns: list[int] = column(workload.requests, "arrival_ns").tolist()
        self._turns: list[Turn | None] = column(workload.requests, "turn").tolist()
        ids = column(workload.requests, "request_id").tolist()
        positions = {ids[position]: position for position, turn in enumerate(self._turns) if turn}
        self._followers: dict[int, list[int]] = {}
        """The turns that wait for the end of each request."""
        unasked: list[int] = []
        for position, turn in enumerate(self._turns):
            if turn is None or turn.follows is None:
                unasked.append(position)
            else:
                self._followers.setdefault(positions[turn.follows], []).append(position)
        self._num_first = len(unasked) if workload.concurrency is None else workload.concurrency
        self._to_come = iter(unasked)

    def first(self) -> Iterator[tuple[int, int]]:
        """Yield the requests that wait for no other, and when they arrive in nanoseconds."""
        for _, position in zip(range(self._num_first), self._to_come, strict=False):
            yield position, self._arrivals_ns[position]

    def next(self, finished: Iterable[int], now_ns: int) -> Iterator[tuple[int, int]]:
        """Yield the requests that are sent because these have just ended, and when they arrive in nanoseconds."""
        for ended in finished:
            for position in self._followers.get(ended, ()):
                turn = self._turns[position]
                yield position, max(self._arrivals_ns[position], now_ns + (turn.think_ns if turn else 0))
            if (position := next(self._to_come, -1)) >= 0:
                yield position, now_ns
