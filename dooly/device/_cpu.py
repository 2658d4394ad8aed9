"""What the system tells of the processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cpu_name() -> str:
    """Return the processor's name and number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()} x{os.cpu_count()}"


def native_dtype(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the element type that the processor multiplies fastest: `bfloat16` where it has instructions for it, else `float32`.

    Without them a bfloat16 product is emulated, several times slower than in single precision.
    """
    flags = info.read_text() if info.is_file() else ""
    return "bfloat16" if any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16")) else "float32"
