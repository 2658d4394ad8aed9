"""Measuring the steps of a serving engine: which batches, how each is realised, timed and kept."""

from dooly.measure.engine._profile import profile
from dooly.measure.engine._profiler import plan_tasks
from dooly.measure.engine._steps import BatchRunner

__all__ = ["BatchRunner", "plan_tasks", "profile"]
