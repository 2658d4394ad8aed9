"""Facts about the devices of this machine: processor, GPUs, caches and memory, read without an engine."""

from dooly.device._cache import cache_bytes, last_level_cache_bytes
from dooly.device._cpu import cpu_name, native_dtype
from dooly.device._gpu import Clocks, Gpu, slowdowns, visible_gpus
from dooly.device._memory import cache_room_bytes

__all__ = [
    "Clocks",
    "Gpu",
    "cache_bytes",
    "cache_room_bytes",
    "cpu_name",
    "last_level_cache_bytes",
    "native_dtype",
    "slowdowns",
    "visible_gpus",
]
