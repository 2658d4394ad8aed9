"""How much of a device's memory measuring may fill: a sweep fits the device, whatever limits are asked for."""

from __future__ import annotations

_SHARE = 0.6
"""Of the memory that is free, for the KV cache: the rest is for weights, activations, captured graphs and the engine's own."""


def cache_room_bytes(device_kind: str) -> int:
    """Return how large a KV cache a device has room for now, in bytes: of a GPU's own memory, or of the machine's."""
    if device_kind == "cuda":
        import torch

        free, _total = torch.cuda.mem_get_info()
    else:
        import psutil

        free = psutil.virtual_memory().available
    return int(_SHARE * free)
