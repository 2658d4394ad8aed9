"""What a fleet came to: its requests as one run, and each replica as a run of its own."""

from __future__ import annotations

import csv
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.simulation._results import RequestTimes, SimulationResult
from dooly.simulation._token_gaps import TokenGaps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class ReplicaResult:
    """What one replica did."""

    role: str
    """`serve`, or in a disaggregated fleet `prefill` or `decode`."""
    result: SimulationResult | None
    """The requests that it served, as they looked from there; None where it served none."""

    def summary(self) -> dict[str, Any]:
        """Return what `simulate --json` says of a replica."""
        if self.result is None:
            return {"role": self.role, "requests": 0}
        summary = self.result.summary()
        kept = {name: summary[name] for name in ("requests", "duration_s", "ttft_s", "tpot_s", "throughput")}
        return {"role": self.role, **kept, "steps": self.result.num_steps, "preemptions": self.result.num_preemptions}


@dataclass(frozen=True, slots=True)
class FleetResult:
    """A workload that several replicas served."""

    result: SimulationResult
    """All requests as their users see them."""
    replicas: tuple[ReplicaResult, ...]
    """The replicas, in the order given."""
    placements: Mapping[str, tuple[int, ...]]
    """Which replica served each request, by row of `result`: `replica`, or `prefill_replica` and `decode_replica`, which is -1
    where the prefill replica generated all."""

    def summary(self) -> dict[str, Any]:
        """Return what `simulate --json` prints."""
        return self.result.summary() | {"replicas": [replica.summary() for replica in self.replicas]}

    def write_csv(self, path: Path) -> None:
        """Write one row a request, as `SimulationResult.write_csv`, with which replica served it."""
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow([*(field.name for field in fields(RequestTimes)), *self.placements])
            for row, *places in zip(self.result.rows, *self.placements.values(), strict=True):
                writer.writerow([*astuple(row), *places])


def joined(
    rows: Sequence[RequestTimes],
    parts: Sequence[SimulationResult],
    wall_s: float,
    generating: Sequence[SimulationResult] | None = None,
) -> SimulationResult:
    """Return one run of these rows, with the steps of all its parts.

    Args:
        rows: The requests.
        parts: What each replica came to.
        wall_s: Seconds that it took.
        generating: Those whose tokens users see; by default all.
    """
    noted = [part.token_gaps for part in (parts if generating is None else generating) if part.token_gaps is not None]
    none = np.empty(0, np.int64)
    gaps = TokenGaps(*(np.concatenate([none, *(getattr(part, name) for part in noted)]) for name in ("gaps_ns", "counts")))
    num_steps, num_preemptions = (sum(getattr(part, name) for part in parts) for name in ("num_steps", "num_preemptions"))
    device_s = (sum(part.host_wait_s for part in parts), sum(part.power_limit_s for part in parts))
    return SimulationResult(rows, num_steps, num_preemptions, wall_s, gaps, *device_s)
