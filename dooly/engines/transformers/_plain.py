"""Trace a Hugging Face Transformers model's forward as plain PyTorch runs it, without a cache: `dooly trace --engine torch`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dooly.engines.transformers._build import meta_model, path_of_head, unpacked_sequences
from dooly.engines.transformers._library import quiet_transformers
from dooly.errors import InvalidInputError, TraceError
from dooly.tracing import TracedModel, capture_forward, fold_layers, instance_sizes, tabulate

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource, ServingConfig

_BATCH, _SEQ = 3, 23
_REQUEST_DIMS = {"input_ids": ("batch", "seq")}


def trace_transformers_model(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace one forward of a causal language model over `input_ids` (batch, seq), without a cache and without weights.

    Raises:
        EngineError: Transformers is not installed.
        InvalidInputError: A setting has a meaning for a serving engine only.
        UnsupportedModelError: Transformers cannot build the model, or it is quantised.
        TraceError: The model's code could not be captured in one graph.
    """
    if serving.attention_backend is not None:
        raise InvalidInputError("--attention-backend: names a backend of vLLM, and --engine torch has none; leave it out")
    if serving.enforce_eager is False:
        raise InvalidInputError("--no-enforce-eager: asks an engine to compile, and --engine torch has none; leave it out")
    if serving.quantization is not None or serving.kv_cache_dtype != "auto":
        raise InvalidInputError(
            "--quantization, --kv-cache-dtype: are settings of vLLM, and --engine torch has none; leave them out"
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel"):
        if getattr(serving, name) not in (1, False):
            raise InvalidInputError(f"--{name.replace('_', '-')}: --engine torch traces one device; leave it out")
    import torch

    with quiet_transformers() as transformers:
        network = meta_model(model, serving.dtype)
        tokens = torch.zeros(_BATCH, _SEQ, dtype=torch.int64, device="meta")
        try:
            with fold_layers(network, first_apart=False) as counts, unpacked_sequences():
                capture = capture_forward(network, kwargs={"input_ids": tokens, "use_cache": False})
        except TraceError as error:
            raise TraceError(f"{model.name}: {error}") from error
    captured = capture.describe(_REQUEST_DIMS, provenance=instance_sizes(network))
    rows = tabulate(captured, stage="decoder", counts=counts, model_class=type(network).__name__)
    head = path_of_head(network)
    environment = {
        "engine": "torch",
        "engine_version": torch.__version__,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "dtype": serving.dtype,
    }
    return TracedModel(model.name, environment, tuple(replace(r, stage="logits") if r.module == head else r for r in rows))
