"""From Dooly's serving settings to vLLM's configuration."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.engines._first_layers import first_layers, keep_first_layers
from dooly.engines._quantization import check_taken, declared_quantization
from dooly.engines._refusals import check_sizes, first_line
from dooly.engines.vllm._version import import_vllm, model_type_known, quiet, text_only
from dooly.errors import InvalidInputError, UnsupportedModelError

_SCHEDULE = (
    *("max_num_active_seqs", "max_num_scheduled_tokens", "long_prefill_token_threshold"),
    *("long_prefill_token_threshold_adaptive", "enable_chunked_prefill", "scheduler_reserve_full_isl", "watermark"),
    "scheduling_policy",
)
"""Settings that change which batches an engine makes of its requests, under one name in both."""
_POSITIONS = re.compile(r"greater than the derived max_model_len \(\w+=(\d+)")

if TYPE_CHECKING:
    from dooly.engines._config import ModelSource, ServingConfig


def engine_arguments(model: ModelSource, serving: ServingConfig, num_layers: int | None = None, **overrides: object) -> Any:  # noqa: ANN401 - vLLM's EngineArgs
    """Return vLLM's `EngineArgs` for a model with dummy weights, synchronous, and eager unless a CPU is asked to compile.

    Args:
        model: The model.
        serving: How to serve it.
        num_layers: Keep only the first so many layers; None keeps the model as it is.
        overrides: Arguments by vLLM's names, in place of Dooly's.
    """
    import_vllm()
    from vllm.engine.arg_utils import EngineArgs

    settings: dict[str, Any] = {
        "model": str(model.folder),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "dtype": serving.dtype,
        "enforce_eager": not compiles(serving),
        "async_scheduling": False,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "max_model_len": serving.max_model_len,
        "max_num_batched_tokens": serving.max_num_batched_tokens,
        "max_num_seqs": serving.max_num_seqs,
        "kv_cache_memory_bytes": serving.kv_cache_bytes,
        "num_gpu_blocks_override": serving.num_gpu_blocks_override,
        "gpu_memory_utilization": 0.3,
        "tensor_parallel_size": serving.tensor_parallel_size,
        "pipeline_parallel_size": serving.pipeline_parallel_size,
        "enable_expert_parallel": serving.enable_expert_parallel,
        "quantization": serving.quantization,
        "kv_cache_dtype": serving.kv_cache_dtype,
    }
    if changed := _changed_configuration(model, serving, num_layers):
        settings["hf_overrides"] = changed
    if serving.moe_backend != "auto":
        settings["moe_backend"] = serving.moe_backend
    if serving.max_cudagraph_capture_size is not None:
        settings["max_cudagraph_capture_size"] = serving.max_cudagraph_capture_size
    if serving.attention_backend is not None:
        settings["attention_backend"] = serving.attention_backend
    return EngineArgs(**(text_only() | settings | overrides))


def schedule_arguments(serving: ServingConfig) -> dict[str, Any]:
    """Return the engine arguments of the settings that shape a whole engine's schedule; those by default are the engine's own.

    Raises:
        InvalidInputError: This version of vLLM lacks one of them.
    """
    from vllm.engine.arg_utils import EngineArgs

    defaults = {field.name: field.default for field in fields(serving)}
    found = {name: value for name in _SCHEDULE if (value := getattr(serving, name)) != defaults[name]}
    for name in found:
        if name not in EngineArgs.__dataclass_fields__:
            raise InvalidInputError(f"--{name.replace('_', '-')}: vLLM {import_vllm().__version__} has none; leave it out")
    return found


def _changed_configuration(model: ModelSource, serving: ServingConfig, num_layers: int | None) -> Any:  # noqa: ANN401
    """Return what makes vLLM read a model's quantisation and its first layers alone: a mapping, or a function; None as it is."""
    declared, written = declared_quantization(model), model.text_config
    # vLLM reads no method where none is named, nor a file beside the configuration whose producer is not.
    unread = declared is not None and declared not in (written.get("quantization_config"), written.get("compression_config"))
    if num_layers is None:
        return {"quantization_config": declared} if unread else None
    if declared is None and serving.quantization is not None and "num_hidden_layers" in written:
        # A method that is asked for, and not declared, vLLM looks for in a mapping.
        first = first_layers(written, num_layers)
        return {"text_config": first} if model.config.get("text_config") else first
    return partial(_change, num_layers=num_layers, quantization=declared if unread else None)


def _change(config: Any, num_layers: int, quantization: dict[str, Any] | None) -> Any:  # noqa: ANN401 - as Transformers has it
    """Cut a Transformers configuration to its first layers, and have it name how its weights are quantised."""
    if quantization is not None:
        config.quantization_config = quantization
    return keep_first_layers(config, num_layers)


def compiles(serving: ServingConfig) -> bool:
    """Tell whether the engine compiles a model that is served so on the device at hand: where it is asked to on a CPU."""
    import_vllm()
    from vllm.platforms import current_platform

    return serving.enforce_eager is False and bool(current_platform.is_cpu())


def engine_config(model: ModelSource, serving: ServingConfig) -> Any:  # noqa: ANN401 - vLLM's VllmConfig
    """Return vLLM's whole configuration of a model; a model with fewer positions than `max_model_len` keeps to its own.

    Raises:
        UnsupportedModelError: vLLM refuses the architecture or the settings, and the message carries its reason; or the model is
            quantised in a form that vLLM does not read.
        InvalidInputError: The model has no layers, no width or no vocabulary.
    """
    declared_quantization(model)
    import_vllm()
    try:
        config = _engine_config(model, serving)
    except Exception as error:  # whatever its code and Transformers' make of a broken config.json
        positions = _POSITIONS.search(str(error))
        if positions is None:
            raise _refusal(model, serving, error) from error
        config = _positions_kept(model, serving, int(positions[1]))
    check_sizes(model, config.model_config.hf_config)
    check_taken(model, config.model_config.quantization)
    return config


def _positions_kept(model: ModelSource, serving: ServingConfig, max_model_len: int) -> Any:  # noqa: ANN401 - vLLM's VllmConfig
    try:
        return _engine_config(model, replace(serving, max_model_len=max_model_len))
    except Exception as error:  # as in engine_config
        raise _refusal(model, serving, error) from error


def _engine_config(model: ModelSource, serving: ServingConfig) -> Any:  # noqa: ANN401 - vLLM's VllmConfig
    arguments = engine_arguments(model, serving)
    with quiet(), model_type_known(model.config.get("model_type")):
        return arguments.create_engine_config()


def _refusal(model: ModelSource, serving: ServingConfig, error: Exception) -> UnsupportedModelError:
    remedy = "check its config.json and the settings"
    if serving.quantization is not None and declared_quantization(model) is None:
        remedy = (
            f"where --quantization {serving.quantization} takes weights that are stored so, give the folder of such a "
            "checkpoint; fp8 quantises these"
        )
    return UnsupportedModelError(f"{model.name}: vLLM refuses the configuration: {first_line(error)}; {remedy}")
