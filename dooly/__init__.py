"""Operation latencies for LLM-serving simulators: trace a model once, measure what is missing, predict the rest.

These names are Dooly's whole interface for most users. Importing them loads neither torch, nor an engine, nor CatBoost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.batch import Batch
from dooly.engines import ServingConfig, find_model
from dooly.errors import DoolyError

# Two functions are named like the packages they come from. Bound here, after those packages, the names stay the functions.
from dooly.simulate import Workload, parse_workload, simulate
from dooly.trace import TracedModel, trace

if TYPE_CHECKING:
    from dooly.measure import profile
    from dooly.predict import LatencyModel, load_latency_model

    __version__: str

__all__ = [
    "Batch",
    "DoolyError",
    "LatencyModel",
    "ServingConfig",
    "TracedModel",
    "Workload",
    "__version__",
    "find_model",
    "load_latency_model",
    "parse_workload",
    "profile",
    "simulate",
    "trace",
]

_LAZY = {"profile": "dooly.measure", "LatencyModel": "dooly.predict", "load_latency_model": "dooly.predict"}


def __getattr__(name: str) -> object:
    """Return a public name whose module loads more than a glance at `dooly` should cost, or the version."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("dooly-llm")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dooly' has no attribute {name!r}; dir(dooly) lists what it has")


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
