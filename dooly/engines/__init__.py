"""Engine adapters: what Dooly asks of a serving engine, and the settings that it passes on. Loads an engine only when asked."""

from dooly.engines._adapter import engine_variables, start_engine, trace_model
from dooly.engines._config import ModelSource, ServingConfig, find_model, listed_models
from dooly.engines._engine import Engine, StepOutput

__all__ = [
    "Engine",
    "ModelSource",
    "ServingConfig",
    "StepOutput",
    "engine_variables",
    "find_model",
    "listed_models",
    "start_engine",
    "trace_model",
]
