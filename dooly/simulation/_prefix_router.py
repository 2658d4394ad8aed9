"""A router that sends prompts to where their beginnings are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.simulation._block_hashes import BlockHashes
from dooly.simulation._router import Router, least_loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.simulation._router import ReplicaLoad
    from dooly.simulation._workload import Request


class PrefixAware(Router):
    """Sends each request to the replica that was sent the longest beginning of its prompt before.

    That is not done where the replica has many more unfinished requests than another; such requests, and those whose beginning
    is new, go to the least loaded one. The router knows what it has sent, not what caches have dropped since.
    """

    def __init__(self, requests: Sequence[Request], num_replicas: int, *, max_imbalance: int = 32) -> None:
        """Start with no prompt sent.

        Args:
            requests: The workload; its `prefix_ids` say which prompts begin alike.
            num_replicas: Replicas to choose from.
            max_imbalance: How many more unfinished requests a replica may have than the least loaded one to be chosen for its
                cache.
        """
        super().__init__(requests, num_replicas)
        self._max_imbalance = max_imbalance
        self._hashes = BlockHashes(requests)
        self._sent: list[set[int]] = [set() for _ in range(num_replicas)]

    def choose(self, request: int, loads: Sequence[ReplicaLoad]) -> int:
        """Return the replica with the longest beginning; see `Router`."""
        chain, place = self._hashes.chain(request), least_loaded(loads)
        lengths = [sum(link in sent for link in chain) for sent in self._sent]
        longest = max(lengths)
        holders = [at for at, length in enumerate(lengths) if length == longest]
        best = min(holders, key=lambda at: loads[at].num_unfinished)
        if longest and loads[best].num_unfinished - loads[place].num_unfinished <= self._max_imbalance:
            place = best
        self._sent[place].update(chain)
        return place
