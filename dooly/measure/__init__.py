"""Measuring: from a traced model to latency records, on a reduced engine or on a plain module."""

from dooly.catalog import PASSES
from dooly.measure._adaptive import TARGET_ERROR
from dooly.measure._devices import profile_on_ray
from dooly.measure._result import ProfileResult
from dooly.measure.engine import BatchRunner, plan_tasks, profile
from dooly.measure.module import module_copies, profile_module
from dooly.measure.timers import CONTENDED_CORES, Call, Contention, Watch, timer_for

__all__ = [
    "CONTENDED_CORES",
    "PASSES",
    "TARGET_ERROR",
    "BatchRunner",
    "Call",
    "Contention",
    "ProfileResult",
    "Watch",
    "module_copies",
    "plan_tasks",
    "profile",
    "profile_module",
    "profile_on_ray",
    "timer_for",
]
