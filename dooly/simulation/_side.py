"""One side of a disaggregated fleet: the replicas that prefill, or those that decode, and what is noted of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.simulation._fleet import replica_result
from dooly.simulation._pool import Pool
from dooly.simulation._remote_kv import RemoteKV
from dooly.simulation._timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.simulation._fleet import MakeRouter, Replica
    from dooly.simulation._results import SimulationResult
    from dooly.simulation._step_log import StepLog
    from dooly.simulation._workload import Request


class Side:
    """The replicas of one role."""

    def __init__(  # noqa: PLR0913, PLR0917 - what a fleet is made of
        self,
        role: str,
        requests: Sequence[Request],
        replicas: Sequence[Replica],
        router: MakeRouter,
        logs: Sequence[StepLog | None],
        num_remote: Sequence[int] = (),
    ) -> None:
        """Start idle.

        Args:
            role: What its replicas do: `prefill` or `decode`.
            requests: The workload as they serve it.
            replicas: The engines.
            router: Makes what chooses one for each request.
            logs: A log for each, or none.
            num_remote: Tokens of each request that the other side has computed; none where the other side takes on from here.
        """
        self.role = role
        self.block_size = replicas[0].config.block_size
        self.requests = requests
        self.timelines = [Timeline(requests) for _ in replicas]
        self.remotes = [RemoteKV(num_remote, keeps_finished=not num_remote) for _ in replicas]
        self.engines = [
            replica.engine(requests, timeline, log, remote)
            for replica, timeline, log, remote in zip(replicas, self.timelines, logs, self.remotes, strict=True)
        ]
        self.pool = Pool(self.engines, router(requests, len(replicas)))

    def send(self, request: int, arrival_ns: int) -> None:
        """Have a request arrive at this side."""
        for timeline in self.timelines:
            timeline.arrivals_ns[request] = arrival_ns
        self.pool.send(request, arrival_ns)

    def results(self) -> list[SimulationResult | None]:
        """Return what each replica came to; None for one that served nothing."""
        chosen: list[int] = self.pool.chosen.tolist()
        engines = zip(self.engines, self.timelines, strict=True)
        return [replica_result(self.requests, chosen, place, *engine) for place, engine in enumerate(engines)]

    def noted(self, name: str) -> npt.NDArray[np.int64]:
        """Return a time of each request at its replica, by its name in `Timeline`; anything for one that was not sent here."""
        times = np.stack([getattr(timeline, name) for timeline in self.timelines])
        return np.asarray(times[self.pool.chosen, np.arange(len(self.requests))], np.int64)
