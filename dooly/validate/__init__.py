"""Validation: the real engine beside the simulation, on the same workload."""

from dooly.validate._real import RealRun
from dooly.validate._validation import MetricReport, Validation, validate

__all__ = ["MetricReport", "RealRun", "Validation", "validate"]
