"""Where the engine is chosen: other rooms know the contract, and import no engine's folder. Loads it when asked for something."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.engines._engine import Engine
    from dooly.tracing import TracedModel


def start_engine(model: ModelSource, serving: ServingConfig, num_layers: int | None = None, **settings: object) -> Engine:
    """Start the engine with a model; the caller closes it.

    Args:
        model: The model.
        serving: How to serve it, but for how it executes: eager and synchronous, where `settings` do not say otherwise.
        num_layers: Keep only the first so many layers, and let hooks see each attention; None keeps the model as it is.
        settings: Engine arguments by the engine's names, in place of Dooly's.

    Raises:
        EngineError: The engine is not installed, or refuses to start; the message carries its reason.
    """
    from dooly.engines.vllm import VllmEngine

    return VllmEngine(model, serving, num_layers, **settings)


def trace_model(
    model: ModelSource, serving: ServingConfig, *, pipeline_rank: int = 0, hardware: str | None = None
) -> TracedModel:
    """Trace a model as the engine builds it, on one rank of its layout.

    Args:
        model: The model.
        serving: How it is served.
        pipeline_rank: Which rank of the pipeline to trace.
        hardware: The GPU that the model is traced for; None for the device at hand.

    Raises:
        EngineError: The engine is not installed.
        UnsupportedModelError: The engine does not know the model, or something in it cannot be traced.
        InvalidInputError: There is no such pipeline rank, or no such GPU is known.
    """
    from dooly.engines.vllm import trace_vllm_model

    return trace_vllm_model(model, serving, pipeline_rank=pipeline_rank, hardware=hardware)


def engine_variables() -> Mapping[str, str | None]:
    """Return the variables of this process that change how the engine runs, without loading it."""
    from dooly.engines.vllm import variables

    return variables()
