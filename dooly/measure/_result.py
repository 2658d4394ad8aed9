"""What a call that measures returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dooly.measure._adaptive_plan import Forecast


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
