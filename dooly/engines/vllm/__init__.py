"""The vLLM adapter: trace a model, run the engine reduced to a few layers or whole."""

from dooly.engines.vllm._engine import VllmEngine
from dooly.engines.vllm._model import trace_vllm_model
from dooly.engines.vllm._stateful import stateful_attributes

__all__ = ["VllmEngine", "stateful_attributes", "trace_vllm_model"]
