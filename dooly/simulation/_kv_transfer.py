"""What moving a request's KV cache from one engine to another takes: bytes over links that move one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dooly.errors import InvalidInputError
from dooly.simulation._workload import NS_PER_S


@dataclass(frozen=True, slots=True)
class KVTransfer:
    """A link between engines, which each of their ranks has one of, and what goes over it."""

    block_bytes: int
    """What a KV block takes at one rank: that of the side whose ranks hold more of it."""
    bytes_per_s: float
    """Bandwidth in one direction; infinite for none to wait for."""
    latency_ns: float = 0.0
    """What a transfer takes beside its bytes, in nanoseconds."""

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or not self.bytes_per_s > 0 or not 0 <= self.latency_ns < math.inf:
            raise InvalidInputError(
                f"KVTransfer: block_bytes must be at least 1, bytes_per_s above 0 and latency_ns at least 0, got "
                f"{self.block_bytes}, {self.bytes_per_s}, {self.latency_ns}"
            )


class Links:
    """The links of engines that send and of those that receive. Each moves one request's blocks at a time, in order of asking."""

    def __init__(self, transfer: KVTransfer, num_senders: int, num_receivers: int) -> None:
        """Start with all links free."""
        self.num_bytes = 0
        """What has been moved, or is under way, of one rank."""
        self._transfer = transfer
        self._sender_free_ns = [0] * num_senders
        self._receiver_free_ns = [0] * num_receivers

    def move(self, sender: int, receiver: int, num_blocks: int, now_ns: int) -> int:
        """Move so many blocks, as soon as both links are free; return when all have come."""
        num_bytes = num_blocks * self._transfer.block_bytes
        self.num_bytes += num_bytes
        start_ns = max(now_ns, self._sender_free_ns[sender], self._receiver_free_ns[receiver])
        free_ns = start_ns + round(float(NS_PER_S) * num_bytes / self._transfer.bytes_per_s)
        self._sender_free_ns[sender] = self._receiver_free_ns[receiver] = free_ns
        return free_ns + round(self._transfer.latency_ns)
