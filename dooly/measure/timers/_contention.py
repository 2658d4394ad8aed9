"""Detect processes that compete for the cores: OpenMP threads wait busily, so one competitor slows a step several times over."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import psutil

CONTENDED_CORES = 0.2
"""Cores that others may keep busy before a measurement counts as contended."""
_LEAST_WINDOW_S = 0.2
"""Processor times count in ticks of 10 ms, and one of another's within 4 ms would read as two and a half cores."""


@dataclass(frozen=True, slots=True)
class Cores:
    """How busy the cores of a machine were, each number a mean over some time."""

    others: float
    """Cores that other processes (and other machines on the same host) kept busy."""
    idle: float
    """Cores that nobody kept busy."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Processor times up to a moment, all in seconds."""

    now: float
    others: float
    idle: float


class Contention:
    """Tells how busy the cores were since the last `begin`, or since it was made.

    Where that is too short for processor times to tell, it looks back over the measurements before, as far as is needed.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._marks = deque([self._mark()])

    def begin(self) -> None:
        """Begin a measurement."""
        self._marks.append(now := self._mark())
        while now.now - self._marks[1].now >= _LEAST_WINDOW_S:
            self._marks.popleft()

    def cores(self) -> Cores | None:
        """Return how busy the cores were; None before there was time enough to tell."""
        now = self._mark()
        since = next((mark for mark in reversed(self._marks) if now.now - mark.now >= _LEAST_WINDOW_S), None)
        if since is None:
            return None
        took = now.now - since.now
        return Cores(max(0.0, (now.others - since.others) / took), (now.idle - since.idle) / took)

    def _mark(self) -> _Mark:
        total, own = psutil.cpu_times(), self._process.cpu_times()
        idle = total.idle + getattr(total, "iowait", 0.0)
        busy = sum(total) - idle - getattr(total, "guest", 0.0)
        return _Mark(time.perf_counter(), float(busy - own.user - own.system), float(idle))
