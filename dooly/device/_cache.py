"""How large a device's last-level cache is: what a rotation over weights must exceed for them to be as cold as in a real step."""

from __future__ import annotations

from pathlib import Path

_SYSFS = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DEFAULT_BYTES = 32 << 20


def last_level_cache_bytes(sysfs: Path = _SYSFS) -> int:
    """Return the size of the largest CPU cache, in bytes; 32 MiB where the system does not tell."""
    sizes = [text for file in sysfs.glob("index*/size") if (text := file.read_text().strip())]
    return max((int(t.rstrip("KMG")) * _UNITS.get(t[-1], 1) for t in sizes), default=_DEFAULT_BYTES)


def cache_bytes(device_kind: str) -> int:
    """Return the size of the last-level cache of a kind of device, in bytes: on `cuda`, the current GPU's second-level cache."""
    if device_kind == "cuda":
        import torch

        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)
    return last_level_cache_bytes()
