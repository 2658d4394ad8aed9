"""How vLLM (0.32) itself balances requests over data-parallel engines.

Each API server sends on its own. It counts its own requests that have not ended, and every 100 ms hears from the coordinator how
many wait and run at each engine and how full its KV cache is. It picks the engine with the lowest score: the larger of its own
count, times the servers, and of what it heard, with what it has sent since as waiting. Where requests wait, a KV cache fuller
than half makes each of them count more, up to four times. Servers scan from different engines, and from one further each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.simulation._router import Router

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._router import ReplicaLoad
    from dooly.simulation._workload import Request

_HALF_FULL = 0.5
_PENALTY = 6.0
"""What a waiting request counts more at an engine, times the share of its cache in use beyond half."""


class _ApiServer:
    """What one API server knows of the engines."""

    def __init__(self, start: int, num_engines: int) -> None:
        self.start = start
        self.num_unfinished = [0] * num_engines
        self.heard: list[tuple[int, int, float]] = [(0, 0, 0.0)] * num_engines
        """Waiting, running and share of the KV cache in use, an engine each."""


class VllmBalancing(Router):
    """Balances as `vllm serve --data-parallel-size` does within itself.

    Which API server a request reaches is up to the system that it runs on; here they take turns.
    """

    look_every_ns = 100_000_000

    def __init__(self, requests: Sequence[Request], num_replicas: int, *, api_server_count: int | None = None) -> None:
        """Start with idle engines.

        Args:
            requests: The workload.
            num_replicas: Engines.
            api_server_count: API servers, by default one an engine, as `vllm serve` starts.
        """
        super().__init__(requests, num_replicas)
        count = api_server_count or num_replicas
        self._servers = [_ApiServer(num_replicas * place // count, num_replicas) for place in range(count)]
        self._num_chosen = 0
        self._sent_by: dict[int, tuple[_ApiServer, int]] = {}

    def look(self, loads: Sequence[ReplicaLoad]) -> None:
        """Hear how loaded the engines are; see `Router`."""
        for server in self._servers:
            server.heard = [(load.num_waiting, load.num_running, load.kv_cache_usage) for load in loads]

    def choose(self, request: int, loads: Sequence[ReplicaLoad]) -> int:
        """Return the engine with the lowest score; see `Router`."""
        del loads
        count = len(self._servers)
        server = self._servers[self._num_chosen % count]
        self._num_chosen += 1
        order = [(server.start + turn) % self.num_replicas for turn in range(self.num_replicas)]
        engine = min(order, key=lambda place: self._score(server, place))
        waiting, running, usage = server.heard[engine]
        server.heard[engine] = (waiting + count, running, usage)
        server.num_unfinished[engine] += 1
        server.start = (server.start + 1) % self.num_replicas
        self._sent_by[request] = server, engine
        return engine

    def finish(self, request: int) -> None:
        """Count a request no more; see `Router`."""
        server, engine = self._sent_by.pop(request)
        server.num_unfinished[engine] -= 1

    def _score(self, server: _ApiServer, engine: int) -> float:
        waiting, running, usage = server.heard[engine]
        score = max(len(self._servers) * server.num_unfinished[engine], waiting + running)
        return score + waiting * _PENALTY * max(0.0, usage - _HALF_FULL)
