"""Where the engine is chosen: other rooms know the contract, and import no engine's folder. Loads it when asked for something."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.engines._engine import Engine, EngineAdapter
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
        InvalidInputError: A setting has no meaning for the engine.
    """
    return _adapter(serving.engine).start(model, serving, num_layers, **settings)


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
        InvalidInputError: There is no such pipeline rank, or no such GPU is known; or a setting has no meaning for the engine.
    """
    return _adapter(serving.engine).trace(model, serving, pipeline_rank=pipeline_rank, hardware=hardware)


def trace_plain_model(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace one forward of a model as plain PyTorch runs it, from Transformers and without a cache: no engine serves so.

    Raises:
        EngineError: Transformers is not installed.
        InvalidInputError: A setting has a meaning for a serving engine only.
        UnsupportedModelError: Transformers cannot build the model, or it is quantised.
        TraceError: The model's code could not be captured in one graph.
    """
    from dooly.engines.transformers import trace_transformers_model

    return trace_transformers_model(model, serving)


def engine_variables(engine: str) -> Mapping[str, str | None]:
    """Return the variables of this process that change how an engine runs, without loading it."""
    return _adapter(engine).variables()


def engine_packages(engine: str) -> tuple[str, ...]:
    """Return the distributions that an engine is, of which one is installed where it is, without loading it."""
    return _adapter(engine).packages


def how_to_install(engine: str) -> str:
    """Return how to install an engine, for messages."""
    return _adapter(engine).install


def _adapter(engine: str) -> EngineAdapter:
    adapter: EngineAdapter = import_module(f"dooly.engines.{engine}").ADAPTER
    return adapter
