"""The GPUs that a trace can be made for, wherever it is made: what an engine asks of a device before it chooses its kernels."""

from __future__ import annotations

from dataclasses import dataclass

from dooly.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU by the facts that decide which kernels an engine runs on it."""

    name: str
    """Its short name, as `--hardware` takes it."""
    device: str
    """Its name as the driver reports it."""
    capability: tuple[int, int]
    """Compute capability, major and minor."""
    memory_bytes: int
    """Size of its memory."""
    num_sms: int
    """Streaming multiprocessors."""


_KNOWN = (
    Target("a100", "NVIDIA A100-SXM4-80GB", (8, 0), 80 << 30, 108),
    Target("l40s", "NVIDIA L40S", (8, 9), 48 << 30, 142),
    Target("h100", "NVIDIA H100 80GB HBM3", (9, 0), 84_943_715_697, 132),
    Target("h200", "NVIDIA H200", (9, 0), 150_119_844_413, 132),
    Target("b200", "NVIDIA B200", (10, 0), 180 << 30, 148),
    Target("rtxpro6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0), 101_973_261_025, 188),
)
TARGETS = {target.name: target for target in _KNOWN}
"""Targets by name."""


def find_target(name: str) -> Target:
    """Return the GPU of a name, in whatever case.

    Raises:
        InvalidInputError: No such GPU is known.
    """
    if name.lower() not in TARGETS:
        raise InvalidInputError(
            f"--hardware: {name!r} is no GPU that a trace can be made for; choose one of {', '.join(TARGETS)}"
        )
    return TARGETS[name.lower()]


def device_target(device: str) -> Target | None:
    """Return the GPU that a driver reports by a name; None where no trace can be made for it."""
    return next((target for target in _KNOWN if target.device == device), None)
