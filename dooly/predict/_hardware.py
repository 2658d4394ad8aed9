"""A device whose measurements ship with Dooly: its facts, and what it takes for each kind of operation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dooly.latency import HostTimes

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_LAUNCH_NS = 2_000.0
"""Least time of any kernel in the rooflines: a scale, whose truth the trees learn."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Facts of a device, and where its measurements are from."""

    name: str
    """Name on the command line, as `h200`."""
    device: str
    """Name as its driver reports it."""
    memory_bytes: int
    """Memory of one device."""
    memory_bytes_per_s: float
    """Bandwidth of its memory by the datasheet."""
    flops_per_s: float
    """Dense bfloat16 rate by the datasheet."""
    num_sms: int
    """Multiprocessors."""
    moved_bytes_per_s: float
    """Bandwidth that operations reach which only move bytes, measured."""
    launch_ns: float
    """What the shortest measured operation takes, in nanoseconds."""
    engine: str
    """Engine and version whose kernels were measured."""
    source: str
    """Who measured, and under which licence."""
    attention_backend: str = "unknown"
    """Attention whose kernels were measured, by the engine's name."""
    gap_ns: float = 0.0
    """What passes between two kernels of a CUDA graph, where kernels were timed alone; 0 where their times hold it."""

    host: HostTimes = field(default_factory=HostTimes)
    """What an engine's host took to launch steps of a model of 30 layers on such a device; zeros where nobody measured it."""

    @classmethod
    def read(cls, folder: Path) -> Hardware:
        """Return the facts in a folder's `hardware.json`."""
        facts = json.loads((folder / "hardware.json").read_text())
        return cls(**facts | {"host": HostTimes(**facts.get("host", {}))})

    def roofline_ns(self, flops: Floats, traffic: Floats) -> Floats:
        """Return the least time that operations could take, in nanoseconds, shape (num_points,).

        Args:
            flops: Floating-point operations, shape (num_points,).
            traffic: Bytes moved, shape (num_points,).
        """
        return np.asarray(_LAUNCH_NS + 1e9 * np.maximum(flops / self.flops_per_s, traffic / self.memory_bytes_per_s))
