"""Trace a model as vLLM runs it: on the device at hand in this process, for any other GPU in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.engines._targets import find_target
from dooly.engines.vllm._elsewhere import needs_image_functions, trace_elsewhere
from dooly.engines.vllm._known import check_known
from dooly.engines.vllm._model import trace_here
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.tracing import TracedModel


def trace_vllm_model(
    model: ModelSource, serving: ServingConfig, *, pipeline_rank: int = 0, hardware: str | None = None
) -> TracedModel:
    """Trace decoder, logits and sampling of a model at full size, without weights, as one rank runs them.

    A model that takes images is traced as it is served for text: its vision tower is left out.

    Args:
        model: The model.
        serving: How it is served; the parallel layout needs no other process.
        pipeline_rank: Which rank of the pipeline to trace. The first takes tokens, the last gives logits.
        hardware: The GPU that the model is traced for, in a process of its own; None for the device at hand.

    Raises:
        InvalidInputError: The pipeline has no such rank, or no such GPU is known.
        UnsupportedModelError: vLLM does not know the architecture, cannot divide it so, or runs attention outside its modules; or
            its weights are quantised in a form that vLLM does not read.
        TraceError: The model's code could not be captured in one graph.
        EngineError: vLLM is not installed, or the process belongs to a PyTorch process group.
    """
    if not 0 <= pipeline_rank < serving.pipeline_parallel_size:
        msg = f"--pipeline-rank: {pipeline_rank} is none of the pipeline's ranks 0 to {serving.pipeline_parallel_size - 1}"
        raise InvalidInputError(msg)
    target = None if hardware is None else find_target(hardware)
    check_known(model, serving, target)  # what is refused is refused before anything is loaded
    if target is not None or needs_image_functions(model):
        return trace_elsewhere(model, serving, pipeline_rank, target)
    return trace_here(model, serving, pipeline_rank)
