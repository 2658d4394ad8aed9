"""Operation latencies for LLM-serving simulators: trace a model once, measure what is missing, predict the rest.

These names are what most users need; the rest lies in the rooms, as `dooly.predict` and `dooly.simulation`. A name is loaded at
its first use, and none loads torch, an engine or CatBoost before it works.
"""

from __future__ import annotations

from importlib import import_module, util
from typing import TYPE_CHECKING
from warnings import warn

if TYPE_CHECKING:
    from typing import Any

    from dbstore import Store
    from dooly.batch import Batch
    from dooly.engines import ServingConfig, find_model
    from dooly.errors import DoolyError
    from dooly.imports import ImportResult as ImportResult
    from dooly.imports import import_measurements as import_measurements
    from dooly.latency import LatencyBackend as LatencyBackend
    from dooly.measure import profile, profile_module
    from dooly.predict import BatchArrays as BatchArrays
    from dooly.predict import Hardware as Hardware
    from dooly.predict import Interconnect as Interconnect
    from dooly.predict import LatencyModel, default_serving, load_latency_model, load_module_latency
    from dooly.predict import ModuleLatency as ModuleLatency
    from dooly.predict import StepLatencies as StepLatencies
    from dooly.predict import StepLatency as StepLatency
    from dooly.predict import listed_hardware as listed_hardware
    from dooly.searching import search
    from dooly.simulation import SchedulerConfig as SchedulerConfig
    from dooly.simulation import Workload as Workload
    from dooly.simulation import parse_workload, scheduler_config, simulate
    from dooly.speculation import SpeculativeConfig as SpeculativeConfig
    from dooly.tracing import TracedModel as TracedModel
    from dooly.tracing import trace
    from dooly.validation import validate

    __version__: str
    """Version of the installed distribution."""

__all__ = [
    "Batch",
    "DoolyError",
    "LatencyModel",
    "ServingConfig",
    "Store",
    "__version__",
    "default_serving",
    "find_model",
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
_ROOMS = {
    "Batch": "dooly.batch",
    "DoolyError": "dooly.errors",
    "LatencyModel": "dooly.predict",
    "ServingConfig": "dooly.engines",
    "Store": "dbstore",
    "default_serving": "dooly.predict",
    "find_model": "dooly.engines",
    "load_latency_model": "dooly.predict",
    "load_module_latency": "dooly.predict",
    "parse_workload": "dooly.simulation",
    "profile": "dooly.measure",
    "profile_module": "dooly.measure",
    "scheduler_config": "dooly.simulation",
    "search": "dooly.searching",
    "simulate": "dooly.simulation",
    "trace": "dooly.tracing",
    "validate": "dooly.validation",
}
"""Where each name is made."""
_MOVED = {
    "BatchArrays": "dooly.predict",
    "Hardware": "dooly.predict",
    "ImportResult": "dooly.imports",
    "Interconnect": "dooly.predict",
    "LatencyBackend": "dooly.latency",
    "ModuleLatency": "dooly.predict",
    "SchedulerConfig": "dooly.simulation",
    "SpeculativeConfig": "dooly.speculation",
    "StepLatencies": "dooly.predict",
    "StepLatency": "dooly.predict",
    "TracedModel": "dooly.tracing",
    "Workload": "dooly.simulation",
    "import_measurements": "dooly.imports",
    "listed_hardware": "dooly.predict",
}
"""Names that stood here, and where they stand."""
_GONE_IN = "0.2.0"
"""The release that has those short names no more."""

if not TYPE_CHECKING:  # type checkers know the names above, and no others

    def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name is of
        """Load a name, a room or the version, when it is asked for."""
        if name == "__version__":
            from importlib import metadata

            return metadata.version("dooly-llm")
        if name in _ROOMS:
            globals()[name] = getattr(import_module(_ROOMS[name]), name)  # Python asks no second time
            return globals()[name]
        if name in _MOVED:
            place = f"{_MOVED[name]}.{name}"
            warn(f"dooly.{name} is {place} now; the short name goes with Dooly {_GONE_IN}", DeprecationWarning, stacklevel=2)
            return getattr(import_module(_MOVED[name]), name)
        if not name.startswith("_") and util.find_spec(f"dooly.{name}"):
            return import_module(f"dooly.{name}")
        raise AttributeError(f"module 'dooly' has no attribute {name!r}; see dooly.__all__")


def __dir__() -> list[str]:
    """Return the public names and the rooms, those that are not loaded yet among them."""
    from pkgutil import iter_modules

    return sorted({*__all__, *(found.name for found in iter_modules(__path__) if not found.name.startswith("_"))})
