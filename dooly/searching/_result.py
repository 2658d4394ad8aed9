"""What a search found: its candidates, best first, with what each does at its highest rate."""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dooly.searching._rates import copies_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dooly.searching._candidate import Candidate
    from dooly.searching._evaluation import Evaluation

_REQUESTS_PRICED = 1000
_S_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class FoundCandidate:
    """A candidate with what the search knows of it."""

    candidate: Candidate
    """What serves."""
    best: Evaluation | None
    """The simulation at the highest rate that is known to meet the limits; None where none is known."""
    below: float | None
    """Lowest rate known not to count, in requests a second; None where there is a reason, or no rate of interest was tried."""
    exact: bool
    """Whether no rate of the grid lies between; other candidates were left as soon as they could not be among the best."""
    ends_early: bool
    """Whether more requests might show a higher rate: even the throughput with all of them at once meets the limits."""
    reason: str | None
    """Why it cannot serve the workload, or not within the limits, in one line; None where it does, or was left."""
    price_per_gpu_hour: float | None
    """What a GPU costs an hour; None where candidates are compared by GPUs."""
    evaluations: tuple[Evaluation, ...]
    """All its simulations, by growing rate."""
    demanded: float | None = None
    """Requests a second that copies of it must bear together; None where none are demanded."""

    @property
    def copies(self) -> int | None:
        """How many of it bear the demanded rate, each an equal share; None where none is demanded or it bears none."""
        return None if self.best is None or self.demanded is None else copies_for(self.demanded, self.best.rate)

    @property
    def total_gpus(self) -> int | None:
        """GPUs of all these copies."""
        return None if self.copies is None else self.copies * self.candidate.num_gpus

    @property
    def goodput_per_gpu(self) -> float | None:
        """Requests a second for each GPU at the highest rate known to meet the limits."""
        return None if self.best is None else self.best.rate / self.candidate.num_gpus

    @property
    def cost_per_1000_requests(self) -> float | None:
        """What a thousand requests cost at that rate, or with all copies at the demanded one, in the unit of the price."""
        if self.best is None or self.price_per_gpu_hour is None:
            return None
        per_second = self.price_per_gpu_hour * (self.total_gpus or self.candidate.num_gpus) / _S_PER_HOUR
        return _REQUESTS_PRICED * per_second / (self.demanded or self.best.rate)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "model": self.candidate.model.name,
            "hardware": self.candidate.hardware,
            "serving": asdict(self.candidate.serving),
            "fleet": asdict(self.candidate.fleet),
            "gpus": self.candidate.num_gpus,
            "copies": self.copies,
            "total_gpus": self.total_gpus,
            "goodput_per_gpu": self.goodput_per_gpu,
            "cost_per_1000_requests": self.cost_per_1000_requests,
            "rate": self.best and self.best.rate,
            "rate_below": self.below,
            "exact": self.exact,
            "ends_early": self.ends_early,
            "reason": self.reason,
            "command": self.candidate.command,
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
        }


@dataclass(frozen=True, slots=True)
class SearchResult:
    """All candidates of a search, best first.

    Of equal ones those come first that have more room under their tightest limit, or where that is alike to a percent, under the
    next; then they stand in the order given. Those come last that cannot serve the workload.
    """

    workload: str
    """The requests, as `parse_workload` takes them."""
    limits: Mapping[str, float]
    """Seconds by metric and statistic, as `ttft_p90`."""
    candidates: tuple[FoundCandidate, ...]
    """All candidates."""
    notes: tuple[str, ...] = ()
    """What a reader should know of how the requests were read, such as failed ones that were left out."""
    demanded: float | None = None
    """Requests a second that must be sustained; None where candidates are compared at their highest rates."""

    @property
    def best(self) -> FoundCandidate | None:
        """The best candidate; None where none meets the limits."""
        return self.candidates[0] if self.candidates[0].best is not None else None

    @property
    def without_rate(self) -> tuple[tuple[str, tuple[FoundCandidate, ...]], ...]:
        """Candidates of which no rate is known that meets the limits, by the reason, in one line."""
        reasons: dict[str, list[FoundCandidate]] = {}
        for found in self.candidates:
            if found.best is None:
                reasons.setdefault(found.reason or "left: cannot be among the best", []).append(found)
        return tuple((reason, tuple(candidates)) for reason, candidates in reasons.items())

    @property
    def num_simulations(self) -> int:
        """Simulations that the answer rests on."""
        return sum(len(found.evaluations) for found in self.candidates)

    def to_json(self) -> dict[str, Any]:
        """Return what `search --json` prints."""
        return {
            "schema": 1,
            "workload": self.workload,
            "limits_s": dict(self.limits),
            "rate": self.demanded,
            "simulations": self.num_simulations,
            "command": self.best and self.best.candidate.command,
            "candidates": [found.to_json() for found in self.candidates],
        }

    def write_csv(self, path: Path) -> None:
        """Write one row a candidate, best first: its settings, goodput and cost, latencies at its rate, and the reason."""
        rows = [_row(found) for found in self.candidates]
        names = dict.fromkeys(name for row in rows for name in row)
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _row(found: FoundCandidate) -> dict[str, Any]:
    row: dict[str, Any] = found.to_json()
    del row["evaluations"]
    settings: dict[str, Any] = row.pop("serving") | row.pop("fleet")
    settings["kv_transfer"] = (link := settings["kv_transfer"]) and f"{link['bytes_per_s']:g} B/s, {link['latency_ns']:g} ns"
    settings["kv_policy"] = settings["kv_policy"] and found.candidate.shown("kv_policy")
    settings["speculative_config"] = settings["speculative_config"] and found.candidate.shown("speculative_config")
    at_best: dict[str, Any] = {} if found.best is None else found.best.to_json()
    shares = {f"{source}_share": share for source, share in at_best.pop("provenance", {}).items()}
    if at_best:
        shares |= {"extrapolated_share": at_best.pop("extrapolated"), "notes": "; ".join(at_best.pop("notes"))}
    latencies_s = {f"{name}_s": value for name, value in at_best.pop("latencies_s", {}).items()}
    head: dict[str, Any] = {name: row.pop(name) for name in ("model", "hardware", "gpus")}
    return head | settings | row | at_best | latencies_s | shares
