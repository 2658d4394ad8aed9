"""How far predicted latencies are off, a step at a time: each real step is predicted from the batch that it worked on."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean, median
from typing import TYPE_CHECKING

from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.power_cap import PacedDevice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dooly.latency import HostTimes, LatencyBackend
    from dooly.validation._kept import ServedRun
    from dooly.validation._real import StepRun


@dataclass(frozen=True, slots=True)
class StepReport:
    """How far predicted latencies are off from the real engine's steps, each of the batch that it really had. In fractions."""

    num_steps: int
    """Steps of all real runs."""
    mape: float
    """Mean over steps of |predicted - real| / real."""
    median_error: float
    """Median of the same."""
    mean_error: float
    """Error of the time that all steps take together; negative where the predictions are too fast."""


def step_report(runs: Sequence[ServedRun], latency: LatencyBackend, ahead: HostTimes | None = None) -> StepReport:
    """Predict each step of real runs from the batch that it worked on: errors of the latencies alone, not of the schedule.

    Args:
        runs: What the real engine did.
        latency: What prices the steps.
        ahead: What the host takes, of an engine that schedules ahead. There a step is what passes from one result to the next,
            predicted from its own batch and the one before it.

    Raises:
        InvalidInputError: The runs hold no step.
    """
    pairs = [pair for run in runs for pair in (_steps(run, latency) if ahead is None else _steps_ahead(run, latency, ahead))]
    if not pairs:
        raise InvalidInputError("--real: the runs kept hold no step; make them with benchmarks/ground_truth.py")
    errors = [abs(predicted / real - 1) for predicted, real in pairs]
    predicted_s, real_s = map(sum, zip(*pairs, strict=True))
    return StepReport(len(pairs), mean(errors), median(errors), predicted_s / real_s - 1)


def _steps(run: ServedRun, latency: LatencyBackend) -> Iterator[tuple[float, float]]:
    """Yield predicted and real seconds of each step that worked on something."""
    device = PacedDevice(latency.power_cap)
    for step, batch in _batches(run):
        if batch is not None:
            start_ns = round(1e9 * step.start_s)
            yield device.run_ns(start_ns, latency.step_ns(batch), batch.num_tokens) / 1e9, step.duration_s


def _steps_ahead(run: ServedRun, latency: LatencyBackend, host: HostTimes) -> Iterator[tuple[float, float]]:
    """Yield predicted and real seconds between the ends of calls, each of which schedules a step and waits for the one before."""
    free_ns, last_end_s, device = None, 0.0, PacedDevice(latency.power_cap)
    now_ns = origin_ns = 0
    for step, batch in _batches(run):
        end_s = step.start_s + step.duration_s
        if free_ns is None:  # nothing is under way: both clocks start here
            now_ns, last_end_s, origin_ns = 0, step.start_s, round(1e9 * step.start_s)
        next_ns = free_ns or 0
        if batch is not None:
            launch_ns = host.launch_ns(batch.num_tokens, only_decodes=batch.num_tokens == batch.num_reqs)
            start_ns = max(free_ns or 0, now_ns + host.prepare_ns)
            step_ns = device.run_ns(origin_ns + start_ns, latency.step_ns(batch), batch.num_tokens)
            free_ns, next_ns = host.launched_ns(now_ns, free_ns or 0, launch_ns, step_ns)
        else:
            free_ns = None
        yield (next_ns - now_ns) / 1e9, end_s - last_end_s
        now_ns, last_end_s = next_ns, end_s


def _batches(run: ServedRun) -> Iterator[tuple[StepRun, Batch | None]]:
    """Yield each step with the batch that was scheduled in it, its requests new once a run; None where there was none."""
    seen: set[int] = set()
    for step in run.steps:
        if not step.work:
            yield step, None
            continue
        places, new, computed = zip(*step.work, strict=True)
        yield step, Batch(new, computed, len(set(places) - seen))
        seen.update(places)
