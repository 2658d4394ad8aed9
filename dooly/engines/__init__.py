"""Engine adapters: what Dooly asks of a serving engine, and the settings that it passes on. Loads an engine only when asked."""

from dooly.engines._adapter import engine_packages, engine_variables, how_to_install, start_engine, trace_model, trace_plain_model
from dooly.engines._config import ENGINES, ModelSource, ServingConfig, find_model, listed_models, serving_as_asked
from dooly.engines._engine import Engine, EngineAdapter, StepOutput
from dooly.engines._hub_ids import hub_id
from dooly.engines._quantization import declared_quantization
from dooly.engines._targets import TARGETS, Target, device_target, find_target

__all__ = [
    "ENGINES",
    "TARGETS",
    "Engine",
    "EngineAdapter",
    "ModelSource",
    "ServingConfig",
    "StepOutput",
    "Target",
    "declared_quantization",
    "device_target",
    "engine_packages",
    "engine_variables",
    "find_model",
    "find_target",
    "how_to_install",
    "hub_id",
    "listed_models",
    "serving_as_asked",
    "start_engine",
    "trace_model",
    "trace_plain_model",
]
