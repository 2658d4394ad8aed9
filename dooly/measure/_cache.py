"""Keep weights as cold as in a real step: between two uses of a weight, a step streams all others through the cache.

Calls rotate over the layers of the reduced engine. Where that rotation moves less than twice the last-level cache, the cache is
swept between calls, and the activations, which a real step has just written, are read once to bring them back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DEFAULT_BYTES = 32 << 20


def last_level_cache_bytes(sysfs: Path = _SYSFS) -> int:
    """Return the size of the largest CPU cache, in bytes; 32 MiB where the system does not tell."""
    sizes = [text for file in sysfs.glob("index*/size") if (text := file.read_text().strip())]
    return max((int(t.rstrip("KMG")) * _UNITS.get(t[-1], 1) for t in sizes), default=_DEFAULT_BYTES)


class CacheSweep:
    """Evicts the last-level cache by reading a buffer of twice its size."""

    def __init__(self, cache_bytes: int) -> None:
        import torch

        self._buffer = torch.ones(2 * cache_bytes // 8, dtype=torch.int64)

    def evict(self, activations: tuple[Any, ...]) -> None:
        """Evict the cache, then read the activations that the next call takes."""
        import torch

        self._buffer.sum()
        for value in activations:
            if isinstance(value, torch.Tensor):
                value.sum()
