"""What a validation found: errors of a simulation beside the real engine's own noise, and what the machine did meanwhile."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dooly.simulation import MetricError, SimulationResult, compare, noise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.validation._machine import MachineState
    from dooly.validation._steps import StepReport


@dataclass(frozen=True, slots=True)
class MetricReport:
    """How far the simulation is off in one metric. All are fractions."""

    mape: float
    """Mean over requests and real runs of |simulated - real| / real."""
    mean_error: float
    """Error of the simulated mean against the mean of the real runs' means; negative where the simulation is too fast."""
    noise: float | None
    """MAPE between the real runs; None where there was only one."""


@dataclass(frozen=True, slots=True)
class AtItsSpeed:
    """Errors of the simulation at the speed that the machine had during the real runs: its drift since the profile left out.

    Every step takes so many times as long as a fixed piece of computing took beside when the machine was profiled. That piece is
    timed between the runs, and nothing of the workload enters.
    """

    ttft: MetricReport
    """Error in time to first token."""
    tpot: MetricReport | None
    """Error in time per output token after the first; None where no request has two output tokens."""


@dataclass(frozen=True, slots=True)
class Validation:
    """A workload, served by the real engine and simulated."""

    real: tuple[SimulationResult, ...]
    """The real engine's runs."""
    simulated: SimulationResult
    """The simulation."""
    ttft: MetricReport
    """Error in time to first token."""
    tpot: MetricReport | None
    """Error in time per output token after the first; None where no request has two output tokens."""
    step: StepReport
    """Error of the latency model, a step at a time."""
    machine: MachineState
    """What the machine did during the real runs; where others kept more than a few percent of a core busy, the real times are not
    the engine's."""
    slowdown: tuple[float, float] | None
    """How much longer than while it was profiled the machine computed and moved memory during the real runs, as fractions; None
    where that was not noted."""
    at_its_speed: AtItsSpeed | None = None
    """The errors at the speed that the machine had then; None where `slowdown` is."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data in the form of `dooly validate --json`; `real` is the first run."""
        return {
            "schema": 1,
            "ttft": _report_to_json(self.ttft),
            "tpot": _report_to_json(self.tpot),
            "step": asdict(self.step),
            "real": self.real[0].summary(),
            "real_runs": [run.summary() for run in self.real],
            "simulated": self.simulated.summary(),
            "others_cores": self.machine.others_cores,
            "slowdown": None if self.slowdown is None else dict(zip(("compute", "memory"), self.slowdown, strict=True)),
            "at_its_speed": None
            if self.at_its_speed is None
            else {"ttft": _report_to_json(self.at_its_speed.ttft), "tpot": _report_to_json(self.at_its_speed.tpot)},
        }


def errors_of(real: Sequence[SimulationResult], simulated: SimulationResult) -> tuple[MetricReport, MetricReport | None]:
    """Return how far a simulation is off in TTFT and in TPOT, beside the noise of the real runs; None of no TPOT."""
    errors, noises = [compare(run, simulated) for run in real], noise(real) if len(real) > 1 else None
    tpots = [e.tpot for e in errors if e.tpot is not None]
    ttft = _report([e.ttft for e in errors], noises.ttft if noises else None)
    return ttft, _report(tpots, noises.tpot if noises else None) if tpots else None


def _report(errors: list[MetricError], noise_: float | None) -> MetricReport:
    """Return the mean of the errors against each real run."""
    # 1 + mean_error is simulated mean / real mean; the real runs' means are averaged, not their ratios.
    real_means = [1 / (1 + e.mean_error) for e in errors]
    mean_error = len(real_means) / sum(real_means) - 1
    return MetricReport(sum(e.mape for e in errors) / len(errors), mean_error, noise_)


def _report_to_json(report: MetricReport | None) -> dict[str, float | None]:
    if report is None:
        return {"mape": None, "mean_error": None, "noise": None}
    return {"mape": report.mape, "mean_error": report.mean_error, "noise": report.noise}
