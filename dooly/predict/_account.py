"""What a latency model has priced so far: how much, where that is from, and how much of it lies beyond what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.predict._sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import numpy.typing as npt

    from dooly.predict._domain import Domain
    from dooly.predict._selections import SelectionLatency
    from dooly.predict._sources import Source

    Floats = npt.NDArray[np.float64]


class Account:
    """The nanoseconds of all steps and selections priced so far; `LatencyModel` keeps one."""

    def __init__(self, domain: Domain) -> None:
        """Start an account of steps that were measured within a domain."""
        self.domain = domain
        self.priced_ns: dict[Source, float] = dict.fromkeys(SOURCES, 0.0)
        """Nanoseconds of all steps priced so far, by where they are from."""
        self.extrapolated_ns = 0.0
        """Those of steps in which attention reads more than it was measured to, and of selections of longer prompts."""

    def reset_account(self) -> None:
        """Forget what was priced so far, so that shares are of what comes."""
        self.priced_ns = dict.fromkeys(SOURCES, 0.0)
        self.extrapolated_ns = 0.0

    def account(self, priced_ns: Floats) -> None:
        """Note the nanoseconds of steps that were priced, by source, and in the last place those that are extrapolated."""
        for source, nanoseconds in zip(SOURCES, priced_ns.tolist(), strict=False):
            self.priced_ns[source] += nanoseconds
        self.extrapolated_ns += float(priced_ns[-1])

    def account_estimate(self, latency_ns: float) -> None:
        """Note nanoseconds that were told rather than predicted, as of a drafter's passes: estimated."""
        self.priced_ns["estimated"] += latency_ns

    def account_selection(self, found: SelectionLatency) -> None:
        """Note what a policy took to select of a prompt."""
        self.priced_ns[found.source] += found.ns
        self.extrapolated_ns += found.ns if found.extrapolated else 0.0

    @property
    def provenance(self) -> Mapping[Source, float]:
        """Share of all seconds priced so far by where they are from, as `StepLatency` has it."""
        sizes_ns = {source: abs(nanoseconds) for source, nanoseconds in self.priced_ns.items()}
        total_ns = max(sum(sizes_ns.values()), 1.0)
        return {source: nanoseconds / total_ns for source, nanoseconds in sizes_ns.items()}

    @property
    def extrapolated_share(self) -> float | None:
        """Share of all seconds priced so far that is of steps in which attention reads more than it was measured to.

        None where no records of the model say how far that is. Selections of prompts beyond those measured count too.
        """
        if self.domain.reach is None and not self.extrapolated_ns:
            return None
        return self.extrapolated_ns / max(sum(self.priced_ns.values()), 1.0)
