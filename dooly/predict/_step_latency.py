"""The predicted latencies of engine steps: seconds, what they are made of, how sure they are and where they are from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from dooly.predict._sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import numpy.typing as npt

    from dooly.predict._sources import Source
    from dooly.predict._step_parts import StepPart

    Floats = npt.NDArray[np.float64]
    Flags = npt.NDArray[np.bool_]

_Seconds = TypeVar("_Seconds", float, "Floats")
"""Of one step, or of many."""


@dataclass(frozen=True, slots=True)
class StepLatency:
    """The predicted latency of one engine step.

    Examples:
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> step = latency.step(dooly.Batch((1,) * 8, (1000,) * 8))
        >>> step.uncertainty_s < 0.1 * step.seconds
        True
        >>> max(step.breakdown_s, key=step.breakdown_s.get)
        'model.layers.*.mlp.gate_up_proj'
    """

    seconds: float
    """Latency of the step, in seconds."""
    uncertainty_s: float
    """Typical error in seconds: the operations' median errors on held-out points, taken as independent between operations."""
    breakdown_s: Mapping[str, float]
    """Seconds of each operation over all its runs, by module path; `layer` is what layers take beyond their operations, which may
    be negative, and `step` what the engine does around the model; `module` is what a plain module takes beyond its operations."""
    extrapolated: bool
    """Whether the batch lies outside what was measured: beyond the limits of steps, where that was asked for, or with more for
    attention to read than it was measured to."""
    provenance: Mapping[Source, float]
    """Share of the seconds that is from records of the very operations (`measured`), from others of their families, from what
    these say of most of a sparse sweep, or from records less a kernel that the engine joins with another (`family`), or from
    bytes over a measured bandwidth, and of a plain module beyond what was measured (`estimated`). What is negative counts by its
    size; they add up to 1."""
    by_source_s: Mapping[tuple[str, Source], float] = field(default_factory=dict)
    """Seconds of each operation apart by where they are from: what a collective takes may be known otherwise than its layer."""
    sustained_s: float | None = None
    """Latency of the same step in seconds on a device that its power limit has slowed, as such steps do that follow each other
    for long without a pause: whatever ran before, it takes between `seconds` and this. None where nobody knows the limit."""


@dataclass(frozen=True, slots=True, eq=False)
class StepLatencies:
    """The predicted latencies of many engine steps, as arrays of shape (num_batches,).

    Examples:
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> steps = latency.steps([dooly.Batch((512,), (0,)), dooly.Batch((1,), (512,))])
        >>> len(steps), bool((steps.uncertainty_s < steps.seconds).all())
        (2, True)
        >>> steps[1].seconds == float(steps.seconds[1])
        True
    """

    seconds: Floats
    """Latency of each step, in seconds."""
    uncertainty_s: Floats
    """Typical error of each in seconds, as `StepLatency` has it."""
    extrapolated: Flags
    """Whether each batch lies outside what was measured."""
    by_source_s: Mapping[tuple[str, Source], Floats]
    """Seconds of each operation in each step, by its module path and by where they are from."""
    sustained_s: Floats | None = None
    """Latency of each in seconds on a device that its power limit has slowed, as `StepLatency` has it."""

    @classmethod
    def of(cls, parts: Iterable[StepPart], extrapolated: Flags) -> StepLatencies:
        """Return the sums of steps' parts."""
        by_source_s: dict[tuple[str, Source], Floats] = {}
        seconds, variance = np.zeros(len(extrapolated)), np.zeros(len(extrapolated))
        for part in parts:
            key = (part.name, part.source)
            by_source_s[key] = by_source_s.get(key, 0.0) + part.latency_ns / 1e9
            seconds += part.latency_ns / 1e9
            variance += (part.error_ns / 1e9) ** 2
        return cls(seconds, np.sqrt(variance), extrapolated, by_source_s)

    @property
    def breakdown_s(self) -> Mapping[str, Floats]:
        """Seconds of each operation in each step, by module path, as `StepLatency` has it."""
        return _by_name(self.by_source_s)

    @property
    def provenance(self) -> Mapping[Source, Floats]:
        """Share of each step's seconds by where they are from, as `StepLatency` has it."""
        return _shares(self.by_source_s)

    def __len__(self) -> int:
        return len(self.seconds)

    def __iter__(self) -> Iterator[StepLatency]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> StepLatency:
        seconds = float(self.seconds[index])
        by_source_s = {key: float(latency_s[index]) for key, latency_s in self.by_source_s.items()}
        return StepLatency(
            seconds,
            float(self.uncertainty_s[index]),
            _by_name(by_source_s),
            bool(self.extrapolated[index]),
            _shares(by_source_s),
            by_source_s,
            None if self.sustained_s is None else float(self.sustained_s[index]),
        )


def _by_name(by_source_s: Mapping[tuple[str, Source], _Seconds]) -> dict[str, _Seconds]:
    """Return seconds by operation, wherever they are from."""
    parts: dict[str, _Seconds] = {}
    for (name, _source), latency_s in by_source_s.items():
        parts[name] = parts[name] + latency_s if name in parts else latency_s
    return parts


def _shares(by_source_s: Mapping[tuple[str, Source], _Seconds]) -> dict[Source, _Seconds]:
    """Return the share of the seconds by where they are from, negative ones by their size."""
    total: Any = sum(abs(latency_s) for latency_s in by_source_s.values())
    shares: dict[Source, Any] = dict.fromkeys(SOURCES, 0.0 * total)
    for (_name, source), latency_s in by_source_s.items():
        shares[source] = shares[source] + abs(latency_s) / total
    return shares
