"""What the machine did beside the real runs, and how fast it was then: errors of a simulation that are the machine's own.

A profile notes what two fixed products took beside every measurement, one that computes and one that reads weights. The same
two run before, between and after the real runs. Where they take longer than they did in the profile, the machine is slower than
when it was measured, and simulations of it are too fast by about as much. Means count, since a machine that is moved between
speeds serves at their mean.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dooly.catalog import STEP
from dooly.measure import Contention, Watch, timer_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dbstore import Record, Store
    from dooly.engines import Engine
    from dooly.predict import LatencyModel

_NOTED_S = {"cpu": 1.0, "cuda": 0.0}
"""Seconds for which a machine's speed is noted before, between and after real runs: cores of a host have several. On a GPU it
is noted once, as products without a pause meet its power limit, and the run behind them would."""


@dataclass(frozen=True, slots=True)
class MachineState:
    """What the machine did while the real engine served."""

    others_cores: float
    """Cores that other processes kept busy; 0 where it served for too short a time to tell."""
    products_ns: tuple[float, float] | None = None
    """What computing and reading weights took, means over the times between runs, in nanoseconds; None where nobody noted it."""

    def slowdown(self, profiled_ns: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return how much longer than in a profile computing and reading weights took, as fractions; None if unknown."""
        if self.products_ns is None or profiled_ns is None:
            return None
        compute, memory = (now / then - 1 for now, then in zip(self.products_ns, profiled_ns, strict=True))
        return compute, memory


class MachineWatch:
    """Watches the machine from when it is made."""

    def __init__(self, engine: Engine) -> None:
        """Begin to watch the machine that an engine runs on."""
        device = next(engine.network.parameters()).device
        self._watch, self._noted_s = Watch(timer_for(device), device), _NOTED_S[device.type]
        self._found: list[list[float]] = []
        self.between_runs()
        self._contention = Contention()

    def between_runs(self) -> None:
        """Note how fast the machine is now, for as long as one speed of several may last."""
        end = time.perf_counter() + self._noted_s
        self._found.append(self._watch.calibrated_ns())
        while time.perf_counter() < end:
            self._found.append(self._watch.calibrated_ns())

    def state(self) -> MachineState:
        """Return what the machine did until now."""
        cores = self._contention.cores()
        compute_ns, memory_ns = (fmean(column) for column in zip(*self._found, strict=True))
        return MachineState(0.0 if cores is None else cores.others, (compute_ns, memory_ns))


def profiled_products_ns(store: Store, latency: LatencyModel) -> tuple[float, float] | None:
    """Return what the two products took while a model was profiled, means over its steps that nothing disturbed.

    None where its records do not say, as those of earlier versions and of other tools.
    """
    environment = latency.environment.digest
    steps = [operation.signature for operation in latency.traced.operations if operation.name == STEP]
    measured = [step for step in steps if store.points(step, environment)]
    return calm_products_ns([record for step in measured for record in store.read(step, environment)])


def calm_products_ns(records: Iterable[Record]) -> tuple[float, float] | None:
    """Return what the two products took beside records that nothing disturbed, means; None where no record says."""
    calm = (record.attributes for record in records if not record.attributes.get("spoiled"))
    found: list[Any] = [facts["products_ns"] for facts in calm if "products_ns" in facts]
    if not found:
        return None
    compute_ns, memory_ns = (fmean(column) for column in zip(*found, strict=True))
    return compute_ns, memory_ns
