"""One of the engines that step together, as a router sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from dooly.simulation._lockstep import JointScheduler
    from dooly.simulation._replica import EngineReplica, Event


class Rank:
    """One of the engines that step together, as a router sees it; the first acts for all."""

    def __init__(self, engine: EngineReplica, scheduler: JointScheduler, place: int) -> None:
        """Take the engine of all ranks and its scheduler."""
        self._engine = engine
        self._joint = scheduler
        self._own = scheduler.ranks[place]
        self._place = place

    @property
    def num_waiting(self) -> int:
        """Requests let in here that wait."""
        return self._own.num_waiting

    @property
    def num_running(self) -> int:
        """Requests that steps work on here."""
        return self._own.num_running

    @property
    def num_unfinished(self) -> int:
        """Requests that were sent here and have not ended."""
        return self._joint.num_coming[self._place] + self.num_waiting + self.num_running

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that requests hold here."""
        return self._own.kv_cache_usage

    @property
    def acted_ns(self) -> int:
        """When the ranks did something last."""
        return self._engine.acted_ns

    @property
    def next_event(self) -> Event | None:
        """What the ranks do next; told by the first."""
        return None if self._place else self._engine.next_event

    def act(self, horizon_ns: int | None = None) -> npt.NDArray[np.int64]:
        """Do that; return the requests that have ended at any rank."""
        return self._engine.act(horizon_ns)

    def send(self, request: int, arrival_ns: int) -> None:
        """Have a request arrive here."""
        self._joint.assign(request, self._place)
        self._engine.send(request, arrival_ns)
