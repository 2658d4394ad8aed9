"""Watch a device while it is measured: who competes for it, and whether it is still as fast as at its best.

Two calibration kernels of fixed work run five times each before and after each measurement, which belongs to what that takes
(`wall_s`): products in the element type that the device multiplies fastest, of many rows and few weights, as in prefills, and
of one row and more weights than the last-level cache holds, as in decodes. A device has no one speed: on two virtual cores
whose host moved them every some seconds, products of both kinds took 1.3 times as long in some stretches as in others, steps
of a model 1.25 times, activations as long, and a copy of memory, which was watched before, 0.6 times. What disturbs a
machine, such as another process, a neighbour on the same host or a clock that falls, only ever slows them down; so the
fastest they ever ran is what later runs are held against. What was measured while they were slower, before it and after, is
marked when it is written, and measured again. What is slow on one side alone, as when threads wake, is not: in three profiles
on two shared cores such measurements took 0 to 19 % longer than calm ones (nine tenths of which lie within 13 %), and an
engine that serves meets such moments as well.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from dooly.device import cache_bytes, native_dtype
from dooly.measure.timers._contention import CONTENDED_CORES, Contention
from dooly.measure.timers._timer import Call

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from dbstore import JSON
    from dooly.measure.timers._timer import Timer

MOST_DRIFT = 0.5
"""Relative slowdown of a calibration kernel from which on a measurement counts as spoiled. On two cores of a host that others use
too, and nothing else running on them, the medians of five rounds differ by up to 0.3."""
_SPARE_CORES = 1.0
"""Idle cores from which on a process that launches a GPU's work never waits for one, whatever others do."""
_ROUNDS = 5
_WIDTHS = {"cpu": 1024, "cuda": 4096}
"""Inputs of the products."""
_ROWS = {"cpu": 64, "cuda": 4096}
"""Rows of the one that computes, over as many outputs as inputs."""
_MOST_BYTES = 256 << 20
"""Weights at the most, where twice the last-level cache is more. What a cache holds in part is read many times faster by turns,
whatever the device does."""


class Watch:
    """Watches one measurement after the other."""

    def __init__(self, timer: Timer, device: torch.device) -> None:
        """Prepare the calibration kernels on a device, and take their first times."""
        self._contention = Contention()
        self._launches = device.type != "cpu"
        self._calls = timer.prepare(_kernels(device))
        self._best_ns = [float("inf")] * len(self._calls.timings)
        self._order = 0
        for _ in range(_ROUNDS):  # the first runs set up the device's libraries
            self.calibrated_ns()
        self.begin()

    def begin(self) -> None:
        """Begin to watch a measurement."""
        self._before_ns = self.calibrated_ns()
        self._contention.begin()
        self._time_s = time.time()

    def facts(self) -> dict[str, JSON]:
        """Return what a record says of the measurement that ends now.

        `order` counts the measurements of a run, and `measured_s` is when this one began, in seconds since 1970. `others_cores`
        is how many cores other processes kept busy, None where it is too early to tell, and `idle_cores`, of a GPU's, how many
        nobody did. `products_ns` is what the kernels took after it, and `drift` how much slower than at their best they were,
        before it and after.
        """
        cores = self._contention.cores()
        after_ns = self.calibrated_ns()
        slower = [min(pair) / best for *pair, best in zip(self._before_ns, after_ns, self._best_ns, strict=True)]
        self._order += 1
        idle: dict[str, JSON] = {"idle_cores": cores.idle} if cores is not None and self._launches else {}
        return {
            "order": self._order,
            "measured_s": self._time_s,
            "others_cores": None if cores is None else cores.others,
            **idle,
            "products_ns": after_ns,
            "drift": max(slower) - 1,
        }

    def calibrated_ns(self) -> list[float]:
        """Return what each calibration kernel takes now, the median of a few rounds, in nanoseconds."""
        rounds = [self._calls.time_ns() for _ in range(_ROUNDS)]
        found = [float(median(ns or 0 for ns in column)) for column in zip(*rounds, strict=True)]
        self._best_ns = [min(pair) for pair in zip(self._best_ns, found, strict=True)]
        return found


def is_spoiled(facts: Mapping[str, Any]) -> bool:
    """Tell whether something disturbed a measurement, by what `Watch.facts` and a GPU's clocks say of it."""
    return bool(disturbances(facts))


def disturbances(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what disturbed a measurement, a clause each, by what `Watch.facts` and a GPU's clocks say of it."""
    others, drift, throttling = facts["others_cores"] or 0.0, facts.get("drift", 0.0), facts.get("throttling")
    found = []
    # What launches a GPU's work takes another core; workers that measure other GPUs of the machine each keep one busy.
    if others > CONTENDED_CORES and facts.get("idle_cores", 0.0) < _SPARE_CORES:
        found.append(f"others keep {others:.1f} cores busy")
    if drift > MOST_DRIFT:
        found.append(f"a fixed piece of work takes {100 * drift:.0f} % longer than at best")
    if throttling:
        found.append(f"the GPU holds its clocks down ({', '.join(throttling)})")
    return tuple(found)


def _kernels(device: torch.device) -> list[Call]:
    import torch

    width, dtype = _WIDTHS[device.type], getattr(torch, native_dtype() if device.type == "cpu" else "bfloat16")
    num_outputs = min(2 * cache_bytes(device.type), _MOST_BYTES) // (width * dtype.itemsize)
    weights = torch.ones(num_outputs, width, dtype=dtype, device=device)
    rows = torch.ones(_ROWS[device.type], width, dtype=dtype, device=device)
    return [
        Call(("calibration", ("compute",)), lambda: torch.nn.functional.linear(rows, weights[:width])),
        Call(("calibration", ("memory",)), lambda: torch.nn.functional.linear(rows[:1], weights)),
    ]
