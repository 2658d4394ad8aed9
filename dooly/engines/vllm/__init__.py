"""The vLLM adapter: trace a model, run the engine reduced to a few layers or whole."""

from dooly.engines.vllm._engine import VllmEngine
from dooly.engines.vllm._model import trace_vllm_model
from dooly.engines.vllm._stateful import stateful_attributes
from dooly.engines.vllm._version import MODEL_RUNNER, import_vllm, let_engine_choose_model_runner

__all__ = [
    "MODEL_RUNNER",
    "VllmEngine",
    "import_vllm",
    "let_engine_choose_model_runner",
    "stateful_attributes",
    "trace_vllm_model",
]
