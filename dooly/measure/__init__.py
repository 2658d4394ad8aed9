"""Measuring: from a traced model to latency records, on a reduced engine."""

from dooly.measure._contention import CONTENDED_CORES, Contention
from dooly.measure._grid import measurement_batches
from dooly.measure._plan import LAYER, STEP, layer_of
from dooly.measure._profile import cpu_name, describe_environment
from dooly.measure._run import ProfileResult, profile, read_traced, trace_operations
from dooly.measure._steps import BatchRunner

__all__ = [
    "CONTENDED_CORES",
    "LAYER",
    "STEP",
    "BatchRunner",
    "Contention",
    "ProfileResult",
    "cpu_name",
    "describe_environment",
    "layer_of",
    "measurement_batches",
    "profile",
    "read_traced",
    "trace_operations",
]
