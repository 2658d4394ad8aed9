"""The Transformers adapter: trace a model as its continuous batching runs it, run that reduced to a few layers or whole.

Of plain PyTorch, `trace_transformers_model` traces one forward without a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dooly.engines._engine import EngineAdapter
from dooly.engines.transformers._library import variables
from dooly.errors import pip_install

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.engines._engine import Engine
    from dooly.tracing import TracedModel

__all__ = ["ADAPTER", "trace_transformers_model"]


def trace_transformers_model(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace one forward of a causal language model as plain PyTorch runs it; see `_plain.py`."""
    from dooly.engines.transformers._plain import trace_transformers_model

    return trace_transformers_model(model, serving)


def _trace(*arguments: Any, **named: Any) -> TracedModel:  # noqa: ANN401 - as the contract has them
    from dooly.engines.transformers._trace import trace_batched_model  # loads torch

    return trace_batched_model(*arguments, **named)


def _start(*arguments: Any, **named: Any) -> Engine:  # noqa: ANN401 - as the contract has them
    from dooly.engines.transformers._engine import TransformersEngine  # loads torch

    return TransformersEngine(*arguments, **named)


ADAPTER = EngineAdapter(
    packages=("transformers",),
    install=f"`pip install transformers` and {pip_install('torch')}",
    trace=_trace,
    start=_start,
    variables=variables,
)
"""What Dooly asks of Transformers."""
