"""Timers: how long calls keep a device busy, how many rounds are enough, and who competes for the cores."""

from dooly.measure.timers._choice import timer_for
from dooly.measure.timers._contention import CONTENDED_CORES, Contention
from dooly.measure.timers._rounds import MAX_ROUNDS, MIN_ROUNDS, is_tight
from dooly.measure.timers._timer import Call, PreparedCalls, Timer, Timing, is_out_of_memory

__all__ = [
    "CONTENDED_CORES",
    "MAX_ROUNDS",
    "MIN_ROUNDS",
    "Call",
    "Contention",
    "PreparedCalls",
    "Timer",
    "Timing",
    "is_out_of_memory",
    "is_tight",
    "timer_for",
]
