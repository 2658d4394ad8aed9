"""Engine adapters: what Dooly asks of a serving engine, and the settings that it passes on. Loads an engine only when asked."""

from dooly.engines._adapter import engine_variables, start_engine, trace_model
from dooly.engines._config import ModelSource, ServingConfig, find_model, listed_models
from dooly.engines._engine import Engine, StepOutput
from dooly.engines._quantization import declared_quantization
from dooly.engines._targets import TARGETS, Target, find_target

__all__ = [
    "TARGETS",
    "Engine",
    "ModelSource",
    "ServingConfig",
    "StepOutput",
    "Target",
    "declared_quantization",
    "engine_variables",
    "find_model",
    "find_target",
    "listed_models",
    "start_engine",
    "trace_model",
]
