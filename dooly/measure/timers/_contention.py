"""Detect processes that compete for the cores: OpenMP threads wait busily, so one competitor slows a step several times over."""

from __future__ import annotations

import time

import psutil

CONTENDED_CORES = 0.2
"""Cores that others may keep busy before a measurement counts as contended."""


class Contention:
    """Tells how many cores other processes kept busy since it was made."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._begin = time.perf_counter()
        self._others = self._other_seconds()

    def others_cores(self) -> float:
        """Return the mean number of cores that other processes (and other machines on the same host) kept busy."""
        return max(0.0, (self._other_seconds() - self._others) / (time.perf_counter() - self._begin))

    def _other_seconds(self) -> float:
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0) - getattr(total, "guest", 0.0)
        own = self._process.cpu_times()
        return float(busy - own.user - own.system)
