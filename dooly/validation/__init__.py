"""Validation: the real engine beside the simulation, on the same workload."""

from dooly.validation._kept import KeptRuns, ServedRun, read_runs, write_runs
from dooly.validation._machine import MachineState
from dooly.validation._real import RealRun, StepRun
from dooly.validation._steps import StepReport, step_report
from dooly.validation._validation import MetricReport, Validation, serve, validate, validate_kept

__all__ = [
    "KeptRuns",
    "MachineState",
    "MetricReport",
    "RealRun",
    "ServedRun",
    "StepReport",
    "StepRun",
    "Validation",
    "read_runs",
    "serve",
    "step_report",
    "validate",
    "validate_kept",
    "write_runs",
]
