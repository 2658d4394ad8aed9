"""What a call that measures returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dbstore import JsonObject
from dooly.measure._adaptive_plan import AdaptivePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dbstore import Record
    from dooly.measure._adaptive_plan import Forecast
    from dooly.measure._tasks import Plan
    from dooly.tracing import TracedModel


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What one call of `profile` or `profile_module` did for one model."""

    model: str
    """Name of the model."""
    num_operations: int
    """Operations that one step of the model runs, each counted once."""
    num_points: int
    """Points of the model's whole grid; a point is measured in several passes, and counts once for each."""
    num_measured: int
    """Points measured now; those that turned out to be infeasible, as for want of memory, are not."""
    num_unsteady: int
    """Points measured now whose samples spread widely, or while other processes competed for the cores."""
    num_left: int
    """Points left unmeasured because the budget ended: of adaptive sweeps, as many as are known to be wanted."""
    measuring_s: float
    """Wall-clock seconds spent measuring."""
    expected_error: float | None = None
    """Relative error expected of a step where nobody measured: each operation's median, by the time that a step spends in it.
    None where a whole grid is measured."""
    num_spoiled: int = 0
    """Points measured now that something disturbed, also when they were measured again; the next call measures them anew."""
    forecast: Forecast | None = None
    """What is left to measure; of a dry run of adaptive sweeps only."""
    forecast_s: float | None = None
    """Seconds that this takes, by what the records of the environment took; None where there are none."""
    known_least: tuple[str, float] | None = None
    """The operation of the largest expected error, by name, and that error; None where a whole grid is measured."""
    least_floor: float | None = None
    """What that error would be at a point if all others of that operation were measured; None where a whole grid is."""
    num_infeasible: int = 0
    """Points that could be measured in no pass of this call, as for want of memory; each counts once."""


def result_of(
    traced: TracedModel, num_points: int, plan: Plan[Any], records: Sequence[Record] = (), seconds: float = 0.0
) -> ProfileResult:
    """Return what a run comes to.

    Args:
        traced: What was profiled.
        num_points: Points of its whole grid.
        plan: What proposed the tasks, told of all that were run.
        records: What was measured.
        seconds: Seconds that it took.
    """
    sweeps = plan if isinstance(plan, AdaptivePlan) else None
    num_left = plan.num_left()  # first: it brings to mind what is known of sweeps, of which the rest is told
    least = None if sweeps is None else sweeps.known_least
    feasible = {(record.signature, JsonObject(record.point)): False for record in records}
    feasible |= {(record.signature, JsonObject(record.point)): True for record in records if record.infeasible is None}
    return ProfileResult(
        traced.model,
        len({operation.signature for operation in traced.operations}),
        num_points,
        sum(record.infeasible is None for record in records),
        sum(bool(record.attributes.get("unsteady")) for record in records),
        num_left,
        seconds,
        expected_error=None if sweeps is None else sweeps.error,
        num_spoiled=sum(bool(record.attributes.get("spoiled")) for record in records),
        known_least=None if least is None else (least[0], least[1].median),
        least_floor=None if least is None else least[1].floor,
        num_infeasible=list(feasible.values()).count(False),
    )
