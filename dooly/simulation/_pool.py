"""Replicas behind a router, in virtual time, and the clock that several such pools share.

All that happens has its place in one order: by time, at one instant as `Happening` says, then by pool, then by replica; routers
look at loads before anything else happens at that time.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._replica import Event, Happening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from dooly.simulation._rank import Rank
    from dooly.simulation._replica import EngineReplica
    from dooly.simulation._router import Router

    Act = Callable[["Pool", int, npt.NDArray[np.int64]], None]
    """Told of a pool, the replica that has just acted, and the requests that have ended there."""

_ROUTER = -1
"""The place of a pool's router beside its replicas."""


class Pool:
    """Replicas of one role with their router."""

    def __init__(self, replicas: Sequence[EngineReplica | Rank], router: Router) -> None:
        """Start without requests."""
        self.replicas = replicas
        self.router = router
        self.chosen = np.full(len(router.requests), -1, np.int64)
        """The replica of each request; -1 for none yet."""
        self._arrivals: list[tuple[int, int]] = []
        """A heap: when each request arrives, and its position."""
        self._look_ns = router.look_every_ns

    def send(self, request: int, arrival_ns: int) -> None:
        """Have a request arrive, not before those that were routed."""
        heappush(self._arrivals, (arrival_ns, request))

    def events(self) -> list[tuple[Event, int]]:
        """Return what comes next: at the router and at each replica, with its place."""
        found = [(event, place) for place, replica in enumerate(self.replicas) if (event := replica.next_event) is not None]
        if self._arrivals:
            found.append((Event(self._arrivals[0][0], Happening.ARRIVE), _ROUTER))
        return found

    def look(self, upcoming_ns: int) -> bool:
        """Show the router the loads if that is due before what comes next; return whether it was."""
        every_ns = self.router.look_every_ns
        if every_ns is None or self._look_ns is None or self._look_ns > upcoming_ns:
            return False
        self.router.look(self.replicas)
        self._look_ns = upcoming_ns - upcoming_ns % every_ns + every_ns
        return True

    def horizon_ns(self) -> int | None:
        """Return when the router may do something next, as far as it knows."""
        arrival_ns = self._arrivals[0][0] if self._arrivals else None
        return min((ns for ns in (arrival_ns, self._look_ns) if ns is not None), default=None)

    def act(self, place: int, horizon_ns: int | None) -> npt.NDArray[np.int64]:
        """Do what comes next at the router or at a replica; return the requests that have ended there."""
        if place != _ROUTER:
            finished = self.replicas[place].act(horizon_ns)
            for request in finished.tolist():
                self.router.finish(request)
            return finished
        arrival_ns, request = heappop(self._arrivals)
        self.chosen[request] = chosen = self.router.choose(request, self.replicas)
        self.replicas[chosen].send(request, arrival_ns)
        return self.chosen[:0]


def run(pools: Sequence[Pool], after: Act, *, coupled: bool) -> None:
    """Run pools until nothing is left to do.

    Args:
        pools: The pools, the first first at one instant.
        after: Called after each act of a replica; it may send requests that arrive at that time.
        coupled: Whether what one replica does can have a request sent to another, other than by arrivals that are known.
    """
    while events := sorted((event, index, place) for index, pool in enumerate(pools) for event, place in pool.events()):
        (event, index, place), others = events[0], events[1:]
        if any(pool.look(event.ns) for pool in pools):
            continue
        pool = pools[index]
        horizon_ns = pool.horizon_ns()
        if coupled and others:
            horizon_ns = others[0][0].ns if horizon_ns is None else min(horizon_ns, others[0][0].ns)
        finished = pool.act(place, horizon_ns)
        if place != _ROUTER:
            after(pool, place, finished)
