"""What happened to each request, in a simulation or in the real engine, and how far two such runs lie apart.

TTFT is first token less arrival, E2E finish less arrival, TPOT finish less first token per output token after the first; requests
of one output token have no TPOT. ITL is each time between two deliveries to a request: of one token, or where drafts are
accepted, of all that a step brings.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError
from dooly.simulation._columns import Columns, column, first_repeated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.simulation._token_gaps import TokenGaps
    from dooly.simulation._workload import Request

_PERCENTILES = (50, 90, 95, 99)
_NAMES = ("mean", *(f"p{p}" for p in _PERCENTILES))


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """One request's life. Times are seconds from the run's start."""

    request_id: int
    """The workload's."""
    arrival_s: float
    """When it was sent."""
    num_prompt_tokens: int
    """At least 1."""
    num_output_tokens: int
    """Tokens generated, at least 1."""
    scheduled_s: float
    """Start of the first step that computed some of its tokens."""
    first_token_s: float
    """End of the step that generated its first token."""
    finish_s: float
    """End of the step that generated its last token."""

    def __post_init__(self) -> None:
        if not self.arrival_s <= self.scheduled_s <= self.first_token_s <= self.finish_s:
            raise InvalidInputError(
                f"request {self.request_id}: arrival_s, scheduled_s, first_token_s, finish_s must not decrease, "
                f"got {self.arrival_s}, {self.scheduled_s}, {self.first_token_s}, {self.finish_s}"
            )
        if self.num_prompt_tokens < 1 or self.num_output_tokens < 1:
            raise InvalidInputError(
                f"request {self.request_id}: num_prompt_tokens and num_output_tokens must be at least 1, "
                f"got {self.num_prompt_tokens} and {self.num_output_tokens}"
            )


TIMES = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")
"""The fields of `RequestTimes` that are times, in their order."""


def times_as_columns(requests: Sequence[Request], times_s: Sequence[npt.NDArray[np.float64]]) -> Columns[RequestTimes]:
    """Return requests' times as columns.

    Args:
        requests: The requests.
        times_s: When they arrived, were scheduled, had their first token and their last, in seconds, shape (num_requests,) each.

    Raises:
        InvalidInputError: Times run backwards.
    """
    named = {name: column(requests, name) for name in ("request_id", "num_prompt_tokens", "num_output_tokens")}
    rows = Columns(RequestTimes, **named | dict(zip(TIMES, times_s, strict=True)))
    arrival_s, scheduled_s, first_token_s, finish_s = times_s
    backwards = np.flatnonzero((arrival_s > scheduled_s) | (scheduled_s > first_token_s) | (first_token_s > finish_s))
    if backwards.size:
        rows[int(backwards[0])]  # says so
    return rows


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """A served workload, simulated or real."""

    rows: Sequence[RequestTimes]
    """At least one, with distinct `request_id`; a tuple, or made one by one when they are asked for."""
    num_steps: int
    """Engine steps taken."""
    num_preemptions: int
    """How often a running request was evicted to start over."""
    wall_s: float
    """Seconds that producing this result took: the simulator's own running time, or the real run's."""
    token_gaps: TokenGaps | None = None
    """Times between tokens; None where they were not noted."""
    host_wait_s: float = 0.0
    """Seconds in which the device waited for its host to launch a step; 0 where that was not noted."""
    power_limit_s: float = 0.0
    """Seconds that the power limit added to the device's steps, of all devices together; 0 where nobody knows one."""

    def __post_init__(self) -> None:
        if not len(self.rows) or first_repeated(column(self.rows, "request_id")) is not None:
            raise InvalidInputError(
                f"SimulationResult: needs one row or more, each of another request_id, got {len(self.rows)} rows"
            )

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last finish."""
        return float(column(self.rows, "finish_s").max() - column(self.rows, "arrival_s").min())

    def ttft_s(self) -> npt.NDArray[np.float64]:
        """Return the times to first token, one a row."""
        return np.asarray(column(self.rows, "first_token_s") - column(self.rows, "arrival_s"))

    def tpot_s(self) -> npt.NDArray[np.float64]:
        """Return the times per output token after the first, one a row with at least two output tokens."""
        gaps = column(self.rows, "num_output_tokens") - 1
        seconds = column(self.rows, "finish_s") - column(self.rows, "first_token_s")
        return np.asarray(seconds[gaps > 0] / gaps[gaps > 0])

    def e2e_s(self) -> npt.NDArray[np.float64]:
        """Return the request latencies, one a row."""
        return np.asarray(column(self.rows, "finish_s") - column(self.rows, "arrival_s"))

    def summary(self) -> dict[str, Any]:
        """Return what `simulate --json` prints.

        Statistics without data (TPOT if all requests ask for one token, throughput over no time) are None.
        """
        duration_s = self.duration_s
        num_output_tokens = int(column(self.rows, "num_output_tokens").sum())
        num_tokens = num_output_tokens + int(column(self.rows, "num_prompt_tokens").sum())
        itl = None if self.token_gaps is None else self.token_gaps.statistics_s(_PERCENTILES)
        return {
            "schema": 1,
            "requests": len(self.rows),
            "duration_s": duration_s,
            "ttft_s": _statistics(self.ttft_s()),
            "tpot_s": _statistics(self.tpot_s()),
            "itl_s": dict(zip(_NAMES, itl or (None,) * len(_NAMES), strict=True)),
            "e2e_s": _statistics(self.e2e_s()),
            "throughput": {
                "output_tokens_per_s": num_output_tokens / duration_s if duration_s else None,
                "total_tokens_per_s": num_tokens / duration_s if duration_s else None,
                "requests_per_s": len(self.rows) / duration_s if duration_s else None,
            },
            "host_wait_s": self.host_wait_s,
            "power_limit_s": self.power_limit_s,
            "wall_s": self.wall_s,
        }

    def write_csv(self, path: Path) -> None:
        """Write one row a request under the names of `RequestTimes`.

        `read_workload` reads it back as a workload of the same arrivals and lengths; prefixes, priorities and turns are lost.
        """
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            names = [field.name for field in fields(RequestTimes)]
            writer.writerow(names)
            writer.writerows(tuple(getattr(row, name) for name in names) for row in self.rows)


def _statistics(values: npt.NDArray[np.float64]) -> dict[str, float | None]:
    if not values.size:
        return dict.fromkeys(_NAMES)
    return dict(zip(_NAMES, (float(values.mean()), *np.percentile(values, _PERCENTILES).tolist()), strict=True))


@dataclass(frozen=True, slots=True)
class MetricError:
    """How far one metric is off. Fractions, not percentages."""

    mape: float
    """Mean over the requests of |simulated - real| / real."""
    mean_error: float
    """(mean simulated - mean real) / mean real; negative where the simulation is too fast."""


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """A simulation's error against the real engine on the same workload."""

    ttft: MetricError
    """Over all requests."""
    tpot: MetricError | None
    """Over the requests of at least two output tokens; None if there are none."""


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """How well the real engine reproduces its own times. Fractions."""

    ttft: float
    """MAPE between runs."""
    tpot: float | None
    """MAPE between runs; None if no request asks for two output tokens."""


def compare(real: SimulationResult, simulated: SimulationResult) -> ErrorReport:
    """Return the simulation's error; requests are matched by `request_id`.

    Raises:
        InvalidInputError: The results are not of the same requests, or a real time is zero, so that no relative error exists.
    """
    real_rows = sorted(real.rows, key=lambda row: row.request_id)
    simulated_rows = sorted(simulated.rows, key=lambda row: row.request_id)
    if [_identity(row) for row in real_rows] != [_identity(row) for row in simulated_rows]:
        raise InvalidInputError("compare: the results hold different requests; run both on the same workload")
    real, simulated = _reordered(real, real_rows), _reordered(simulated, simulated_rows)
    tpot = _metric_error("TPOT", real.tpot_s(), simulated.tpot_s()) if real.tpot_s().size else None
    return ErrorReport(_metric_error("TTFT", real.ttft_s(), simulated.ttft_s()), tpot)


def _identity(row: RequestTimes) -> tuple[int, int, int]:
    return row.request_id, row.num_prompt_tokens, row.num_output_tokens


def _reordered(result: SimulationResult, rows: Sequence[RequestTimes]) -> SimulationResult:
    return SimulationResult(tuple(rows), result.num_steps, result.num_preemptions, result.wall_s)


def _metric_error(name: str, real: npt.NDArray[np.float64], simulated: npt.NDArray[np.float64]) -> MetricError:
    return MetricError(mape(name, real, simulated), float(simulated.mean() / real.mean() - 1))


def mape(name: str, real: npt.NDArray[np.float64], simulated: npt.NDArray[np.float64]) -> float:
    """Return the mean of |simulated - real| / real of a metric, by its name, over requests.

    Raises:
        InvalidInputError: A real time is 0, so that no relative error exists.
    """
    if real.min() <= 0:
        raise InvalidInputError(f"compare: a real {name} is 0 s, so its relative error is undefined; leave such requests out")
    return float(np.mean(np.abs(simulated - real) / real))


def noise(results: Sequence[SimulationResult]) -> NoiseReport:
    """Return the MAPE between repeated runs of the real engine: the mean over pairs, each run being the reference once.

    Raises:
        InvalidInputError: There are fewer than two runs, or they are not of the same requests.
    """
    if len(results) < 2:  # noqa: PLR2004 -- a pair
        raise InvalidInputError(f"noise: needs at least two runs of the same workload, got {len(results)}; repeat the run")
    reports = [compare(reference, other) for reference, other in permutations(results, 2)]
    tpots = [report.tpot.mape for report in reports if report.tpot]
    return NoiseReport(float(np.mean([report.ttft.mape for report in reports])), float(np.mean(tpots)) if tpots else None)
