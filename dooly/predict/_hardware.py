"""A device whose measurements ship with Dooly: its facts, and what it takes for each kind of operation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.latency import HostTimes
from dooly.predict._domain import Reach
from dooly.predict._json_file import read_facts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

HOST_LAYERS = 30
"""Layers of the models whose launches are known, Llama 3.1 8B and Qwen2.5 7B, on average."""
ROOFLINE_LEAST_NS = 2_000.0
"""Least time of any kernel in the rooflines: a scale, whose truth the trees learn."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """Facts of a device, and where its measurements are from.

    Examples:
        >>> h200 = next(hardware for hardware in dooly.predict.listed_hardware() if hardware.name == "h200")
        >>> h200.device, h200.memory_bytes_per_s
        ('NVIDIA H200', 4800000000000.0)
    """

    name: str
    """Name on the command line, as `h200`."""
    device: str
    """Name as its driver reports it."""
    memory_bytes: int
    """Memory of one device, as CUDA reports it: what an engine takes its share of."""
    memory_bytes_per_s: float
    """Bandwidth of its memory by the datasheet."""
    flops_per_s: float
    """Dense bfloat16 rate by the datasheet."""
    num_sms: int
    """Multiprocessors."""
    moved_bytes_per_s: float
    """Bandwidth that operations reach which only move bytes: measured, or by the datasheet where no table tells."""
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

    reach: Reach | None = None
    """How far steps were measured; None where nothing tells."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What is doubtful in what was measured of a family, by its name, such as `linear-fp8_block`."""
    launches_ns: Mapping[str, float] = field(default_factory=dict)
    """What launches alone may have taken in the rows of a family, by its name: below, its rows tell no more."""
    host: HostTimes | None = None
    """What an engine's host is taken to need to launch steps of a model of `HOST_LAYERS`; None where nobody measured it."""
    host_experts_ns: float = 0.0
    """What that host needs more for a layer's mixture of experts, where a step is not captured."""
    burst_ns: int = 0
    """How long products that arithmetic bounds run at full clocks, one behind the other, before the power limit slows them."""
    slowdown_permille: int = 0
    """How much longer they take from then on, in thousandths; 0 where nobody measured it."""
    float32_flops_per_s: float | None = None
    """Rate of products in float32 by the datasheet, without tensor cores; None where nobody tells."""

    @classmethod
    def read(cls, folder: Path) -> Hardware:
        """Return the facts in a folder's `hardware.json`.

        Raises:
            InvalidInputError: The file holds none.
        """

        def make(facts: Mapping[str, Any]) -> Hardware:
            host, reach = facts.get("host"), facts.get("reach")
            made = {"host": None if host is None else HostTimes(**host), "reach": None if reach is None else Reach(**reach)}
            return cls(**{**facts, **made})

        return read_facts(folder / "hardware.json", make, "facts of a device")

    def write(self, folder: Path) -> None:
        """Write the facts to a folder's `hardware.json`."""
        (folder / "hardware.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    def roofline_ns(self, flops: Floats, traffic: Floats) -> Floats:
        """Return the least time that operations could take, in nanoseconds, shape (num_points,).

        Args:
            flops: Floating-point operations, shape (num_points,).
            traffic: Bytes moved, shape (num_points,).
        """
        return np.asarray(ROOFLINE_LEAST_NS + 1e9 * np.maximum(flops / self.flops_per_s, traffic / self.memory_bytes_per_s))
