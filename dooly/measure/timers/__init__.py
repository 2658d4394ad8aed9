"""Timers: how long calls keep a device busy, how many rounds are enough, and what disturbs it meanwhile."""

from dooly.measure.timers._choice import timer_for
from dooly.measure.timers._contention import CONTENDED_CORES, Contention
from dooly.measure.timers._rounds import MAX_ROUNDS, MIN_ROUNDS, is_tight
from dooly.measure.timers._timer import Call, CpuTimer, PreparedCalls, Timer, Timing, is_out_of_memory
from dooly.measure.timers._watch import MOST_DRIFT, Watch, disturbances, is_spoiled

__all__ = [
    "CONTENDED_CORES",
    "MAX_ROUNDS",
    "MIN_ROUNDS",
    "MOST_DRIFT",
    "Call",
    "Contention",
    "CpuTimer",
    "PreparedCalls",
    "Timer",
    "Timing",
    "Watch",
    "disturbances",
    "is_out_of_memory",
    "is_spoiled",
    "is_tight",
    "timer_for",
]
