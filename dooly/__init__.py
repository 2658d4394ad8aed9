"""Operation latencies for LLM-serving simulators: trace a model once, measure what is missing, predict the rest.

These names are all that most users need. Importing them loads neither torch, nor an engine, nor CatBoost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dbstore import Store
from dooly.batch import Batch
from dooly.engines import ServingConfig, find_model
from dooly.errors import DoolyError
from dooly.imports import ImportResult, import_measurements
from dooly.latency import LatencyBackend
from dooly.measure import profile, profile_module
from dooly.predict import (
    BatchArrays,
    Hardware,
    Interconnect,
    LatencyModel,
    ModuleLatency,
    StepLatencies,
    StepLatency,
    default_serving,
    listed_hardware,
    load_latency_model,
    load_module_latency,
)
from dooly.searching import search
from dooly.simulation import SchedulerConfig, Workload, parse_workload, scheduler_config, simulate
from dooly.speculation import SpeculativeConfig
from dooly.tracing import TracedModel, trace
from dooly.validation import validate

if TYPE_CHECKING:
    __version__: str
    """Version of the installed distribution."""

__all__ = [
    "Batch",
    "BatchArrays",
    "DoolyError",
    "Hardware",
    "ImportResult",
    "Interconnect",
    "LatencyBackend",
    "LatencyModel",
    "ModuleLatency",
    "SchedulerConfig",
    "ServingConfig",
    "SpeculativeConfig",
    "StepLatencies",
    "StepLatency",
    "Store",
    "TracedModel",
    "Workload",
    "__version__",
    "default_serving",
    "find_model",
    "import_measurements",
    "listed_hardware",
    "load_latency_model",
    "load_module_latency",
    "parse_workload",
    "profile",
    "profile_module",
    "scheduler_config",
    "search",
    "simulate",
    "trace",
    "validate",
]


def __getattr__(name: str) -> str:
    """Return the version, which takes a look at the installed distribution, when it is asked for."""
    from importlib import metadata

    if name == "__version__":
        return metadata.version("dooly-llm")
    raise AttributeError(f"module 'dooly' has no attribute {name!r}; see dooly.__all__")
