"""Prediction: latency models fitted to a store's records. Loads neither torch nor an engine."""

from dooly.predict._family import held_out_errors
from dooly.predict._family_process import FamilyProcess, Parameters, Points
from dooly.predict._features import BatchArrays
from dooly.predict._fit import fit_latency_model, load_latency_model
from dooly.predict._fit_hardware import default_serving, listed_hardware, with_limits
from dooly.predict._fit_module import load_module_latency
from dooly.predict._fitted import FittedOperation
from dooly.predict._hardware import Hardware
from dooly.predict._interconnect import Interconnect
from dooly.predict._kept_fits import drop_fits_of_other_code
from dooly.predict._latency_model import LatencyModel
from dooly.predict._module_latency import ModuleLatency
from dooly.predict._operation import OperationWork
from dooly.predict._selections import selection_latency, selection_work
from dooly.predict._step_latency import StepLatencies, StepLatency
from dooly.predict._sweep import Rates, Sweep, lay_out, work_at

__all__ = [
    "BatchArrays",
    "FamilyProcess",
    "FittedOperation",
    "Hardware",
    "Interconnect",
    "LatencyModel",
    "ModuleLatency",
    "OperationWork",
    "Parameters",
    "Points",
    "Rates",
    "StepLatencies",
    "StepLatency",
    "Sweep",
    "default_serving",
    "drop_fits_of_other_code",
    "fit_latency_model",
    "held_out_errors",
    "lay_out",
    "listed_hardware",
    "load_latency_model",
    "load_module_latency",
    "selection_latency",
    "selection_work",
    "with_limits",
    "work_at",
]
