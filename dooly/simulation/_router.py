"""What sends requests to the replicas of a fleet: the contract of a router, and those that look at numbers of requests alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._workload import Request


class ReplicaLoad(Protocol):
    """What a router may see of a replica."""

    @property
    def num_waiting(self) -> int:
        """Requests that its scheduler has let in and not admitted to a step, or has preempted."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that its steps work on."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests that were sent to it and have not ended."""
        ...

    @property
    def kv_cache_usage(self) -> float:
        """Share of its KV blocks that requests hold, from 0 to 1."""
        ...


class Router(ABC):
    """Chooses the replica of each request, one by one in order of arrival. A router serves one run."""

    look_every_ns: int | None = None
    """How often it is shown the loads beside; None for never."""

    def __init__(self, requests: Sequence[Request], num_replicas: int) -> None:
        """Start with no request sent.

        Args:
            requests: The workload; requests go by their positions in it.
            num_replicas: Replicas to choose from, at least 1.
        """
        self.requests = requests
        self.num_replicas = num_replicas

    @abstractmethod
    def choose(self, request: int, loads: Sequence[ReplicaLoad]) -> int:
        """Return which replica serves a request that arrives now.

        Args:
            request: Its position in the workload.
            loads: The replicas as they are now.
        """

    def look(self, loads: Sequence[ReplicaLoad]) -> None:  # noqa: B027 - few need to know
        """See the replicas, each `look_every_ns`."""

    def finish(self, request: int) -> None:  # noqa: B027 - few need to know
        """Be told that a request has ended."""


class RoundRobin(Router):
    """Sends requests to the replicas in turn."""

    def __init__(self, requests: Sequence[Request], num_replicas: int) -> None:
        """Start with the first replica."""
        super().__init__(requests, num_replicas)
        self._turn = -1

    def choose(self, request: int, loads: Sequence[ReplicaLoad]) -> int:
        """Return the next replica; see `Router`."""
        del request, loads
        self._turn = (self._turn + 1) % self.num_replicas
        return self._turn


class LeastLoaded(Router):
    """Sends each request to the replica with the fewest unfinished ones, of several to the first."""

    def choose(self, request: int, loads: Sequence[ReplicaLoad]) -> int:
        """Return the least loaded replica; see `Router`."""
        del request
        return least_loaded(loads)


def least_loaded(loads: Sequence[ReplicaLoad]) -> int:
    """Return the replica with the fewest unfinished requests, of several the first."""
    return min(range(len(loads)), key=lambda place: loads[place].num_unfinished)
