"""Build a Hugging Face Transformers model at full size on the meta device, and trace its forward as plain PyTorch runs it."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dooly.engines._quantization import declared_quantization
from dooly.engines._refusals import check_sizes, first_line
from dooly.errors import EngineError, InvalidInputError, TraceError, UnsupportedModelError
from dooly.tracing import TracedModel, capture_forward, fold_layers, instance_sizes, tabulate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from torch import nn

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
    if serving.quantization is not None or serving.kv_cache_dtype != "auto":
        raise InvalidInputError(
            "--quantization, --kv-cache-dtype: are settings of vLLM, and --engine torch has none; leave them out"
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel"):
        if getattr(serving, name) not in (1, False):
            raise InvalidInputError(f"--{name.replace('_', '-')}: --engine torch traces one device; leave it out")
    import torch

    with _quiet_transformers() as transformers:
        network = _meta_model(model, serving.dtype, transformers)
        tokens = torch.zeros(_BATCH, _SEQ, dtype=torch.int64, device="meta")
        try:
            with fold_layers(network, first_apart=False) as counts, _unpacked_sequences():
                capture = capture_forward(network, kwargs={"input_ids": tokens, "use_cache": False})
        except TraceError as error:
            raise TraceError(f"{model.name}: {error}") from error
    captured = capture.describe(_REQUEST_DIMS, provenance=instance_sizes(network))
    rows = tabulate(captured, stage="decoder", counts=counts, model_class=type(network).__name__)
    head = _path_of_head(network)
    environment = {
        "engine": "torch",
        "engine_version": torch.__version__,
        "torch_version": torch.__version__,
        "transformers_version": transformers.__version__,
        "dtype": serving.dtype,
    }
    return TracedModel(model.name, environment, tuple(replace(r, stage="logits") if r.module == head else r for r in rows))


def _meta_model(model: ModelSource, dtype: str, transformers: ModuleType) -> nn.Module:
    """Return the model that a configuration describes, on the meta device, in inference mode."""
    import torch

    if quantization := declared_quantization(model):
        method = quantization["quant_method"]
        raise UnsupportedModelError(
            f"{model.name}: quantization_config: {method} weights are packed when they load, and --engine torch loads none; "
            "use --engine vllm, or take quantization_config out of config.json"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(model.folder, local_files_only=True, trust_remote_code=False)
        check_sizes(model, config)
        with torch.device("meta"):
            network: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the model's code makes of a broken config.json
        raise UnsupportedModelError(
            f"{model.name}: Transformers cannot build it: {first_line(error)}; check its config.json"
        ) from error
    return network.eval()


def _path_of_head(network: Any) -> str | None:  # noqa: ANN401 - a PreTrainedModel
    head = network.get_output_embeddings()
    return next((path for path, module in network.named_modules() if module is head), None)


@contextmanager
def _quiet_transformers() -> Iterator[ModuleType]:
    """Import Transformers, and keep it from speaking within the scope."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ModuleNotFoundError as error:
        raise EngineError(f"engine torch: {error.name} is not installed; install it with `pip install transformers`") from error
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)


@contextmanager
def _unpacked_sequences() -> Iterator[None]:
    """Tell Transformers that no row holds several sequences: it looks at position values otherwise, and masks where it traces."""
    from transformers import masking_utils

    detect = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = detect
