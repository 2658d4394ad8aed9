"""Measuring: from a traced model to latency records, on a reduced engine."""

from dooly.measure._plan import LAYER, STEP, layer_of
from dooly.measure._run import ProfileResult, profile, read_traced, trace_operations
from dooly.measure._steps import BatchRunner

__all__ = ["LAYER", "STEP", "BatchRunner", "ProfileResult", "layer_of", "profile", "read_traced", "trace_operations"]
