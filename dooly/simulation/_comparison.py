"""Two runs of one workload side by side: each metric's mean and percentiles, and how far single requests lie apart."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.errors import InvalidInputError
from dooly.simulation._results import mape

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.simulation._results import SimulationResult

PERCENTILES = (50, 90, 99)
STATISTICS = ("mean", *(f"p{p}" for p in PERCENTILES))


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of two runs."""

    metric: str
    """`ttft`, `tpot`, `itl` or `e2e`."""
    simulated_s: tuple[float, ...]
    """Mean, P50, P90 and P99 of the simulation, in seconds."""
    real_s: tuple[float, ...]
    """The same of the real run."""
    mape: float | None
    """Mean over requests of |simulated - real| / real; None for times between tokens, which belong to no request."""

    @property
    def errors(self) -> tuple[float | None, ...]:
        """Relative error of each statistic; negative where the simulation is too fast, None beside a real one of 0."""
        return tuple(s / r - 1 if r else None for s, r in zip(self.simulated_s, self.real_s, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        named = {name: dict(zip(STATISTICS, getattr(self, name), strict=True)) for name in ("simulated_s", "real_s", "errors")}
        return {"mape": asdict(self)["mape"], **named}


def compare_runs(simulated: SimulationResult, real: SimulationResult) -> tuple[Compared, ...]:
    """Compare a simulation with a real run of the same workload; requests are matched by their order.

    Raises:
        InvalidInputError: The runs hold other requests, or a real time is 0.
    """
    lengths = [[(row.num_prompt_tokens, row.num_output_tokens) for row in run.rows] for run in (simulated, real)]
    if lengths[0] != lengths[1]:
        place = next((i for i, pair in enumerate(zip(*lengths, strict=False)) if pair[0] != pair[1]), min(map(len, lengths)))
        raise InvalidInputError(
            f"compare: request {place} differs, of {len(lengths[0])} simulated and {len(lengths[1])} real ones; simulate the "
            "real run's own requests, with --workload and its file"
        )
    pairs = {name: (getattr(simulated, f"{name}_s")(), getattr(real, f"{name}_s")()) for name in ("ttft", "tpot", "e2e")}
    found = [_compared(name, *values) for name, values in pairs.items() if values[1].size]
    gaps = [run.token_gaps and run.token_gaps.statistics_s(PERCENTILES) for run in (simulated, real)]
    if gaps[0] and gaps[1]:
        found.insert(-1, Compared("itl", gaps[0], gaps[1], None))
    return tuple(found)


def _compared(metric: str, simulated: npt.NDArray[np.float64], real: npt.NDArray[np.float64]) -> Compared:
    return Compared(metric, _statistics(simulated), _statistics(real), mape(metric.upper(), real, simulated))


def _statistics(values: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return (float(values.mean()), *np.percentile(values, PERCENTILES).tolist())
