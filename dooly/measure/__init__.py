"""Measuring: from a traced model to latency records, on a reduced engine."""

from dooly.measure._cache import cache_bytes
from dooly.measure._contention import CONTENDED_CORES, Contention
from dooly.measure._environment import cpu_name, describe_environment, on_this_machine
from dooly.measure._given import check_sizes, check_store
from dooly.measure._grid import measurement_batches
from dooly.measure._module_profiler import module_copies
from dooly.measure._plan import LAYER, MODULE, STEP, layer_of, with_whole_module
from dooly.measure._profile import plan_tasks
from dooly.measure._profile_module import profile_module
from dooly.measure._run import ProfileResult, profile, read_traced, told_apart, trace_operations
from dooly.measure._steps import BatchRunner
from dooly.measure._tasks import PASSES
from dooly.measure._timer import Call, timer_for

__all__ = [
    "CONTENDED_CORES",
    "LAYER",
    "MODULE",
    "PASSES",
    "STEP",
    "BatchRunner",
    "Call",
    "Contention",
    "ProfileResult",
    "cache_bytes",
    "check_sizes",
    "check_store",
    "cpu_name",
    "describe_environment",
    "layer_of",
    "measurement_batches",
    "module_copies",
    "on_this_machine",
    "plan_tasks",
    "profile",
    "profile_module",
    "read_traced",
    "timer_for",
    "told_apart",
    "trace_operations",
    "with_whole_module",
]
