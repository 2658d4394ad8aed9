"""The vLLM adapter: trace a model, run the engine reduced to a few layers or whole."""

from dooly.engines.vllm._engine import VllmEngine
from dooly.engines.vllm._model import stateful_attributes, trace_vllm_model

__all__ = ["VllmEngine", "stateful_attributes", "trace_vllm_model"]
