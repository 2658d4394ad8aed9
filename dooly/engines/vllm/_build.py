"""Build one rank's part of a vLLM model at full size on the meta device, ready to be captured in one graph."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines._refusals import first_line
from dooly.engines.vllm._config import compiles
from dooly.engines.vllm._experts import is_experts
from dooly.engines.vllm._parallel import enter_layout
from dooly.engines.vllm._provenance import configured_sizes
from dooly.engines.vllm._stateful import show_attention_calls
from dooly.engines.vllm._version import elsewhere, fresh_module_caches, transformers_classes_kept
from dooly.errors import DoolyError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.tracing import Provenance


@contextmanager
def meta_model(
    model: ModelSource,
    serving: ServingConfig,
    config: Any,  # noqa: ANN401 - vLLM's VllmConfig
    pipeline_rank: int,
) -> Iterator[tuple[nn.Module, Provenance]]:
    """Build the model on the meta device within vLLM's configuration and parallel state, and find out what sets its sizes.

    Raises:
        UnsupportedModelError: vLLM cannot build the model, or not in this parallel layout.
    """
    from vllm import ir
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )

    # Operators that a compiling engine opens to its compiler are not operators of their own.
    opaque = not compiles(serving)
    unbuilt = deepcopy(config)  # building registers the model's layers in its configuration
    with (
        tempfile.TemporaryDirectory() as folder,
        set_current_vllm_config(config),
        fresh_module_caches(),
        ir.enable_torch_wrap(opaque),
    ):
        init_distributed_environment(1, 0, f"file://{Path(folder) / 'rendezvous'}", 0, "gloo")
        try:
            initialize_model_parallel(1, 1)
            enter_layout(serving, pipeline_rank)
            try:
                network = _build(config)
            except DoolyError:
                raise
            except Exception as error:  # whatever the model's code makes of sizes that it cannot have
                raise UnsupportedModelError(f"{model.name}: vLLM cannot build it: {first_line(error)}{elsewhere()}") from error
            # What vLLM fills in at once, such as the norms of models that Transformers builds, is real until here.
            yield network.to("meta"), configured_sizes(unbuilt, model.config, _build)
        finally:
            cleanup_dist_env_and_memory()


def _build(config: Any) -> nn.Module:  # noqa: ANN401 - vLLM's VllmConfig
    import torch

    from dooly.engines.vllm._meta_device import MetaDevice

    registered = vars(config.compilation_config)
    before = {name: copy(value) for name, value in registered.items() if isinstance(value, (dict, list, set))}
    try:
        return _built_on(torch.device("meta"), config)
    except RuntimeError as error:
        if not isinstance(error, NotImplementedError) and "meta tensor" not in str(error):
            raise
    # The model reads values of what it is built from: once more, with those there, and without the layers registered so far.
    registered.update(before)
    return _built_on(MetaDevice(), config)


def _built_on(device: AbstractContextManager[Any], config: Any) -> nn.Module:  # noqa: ANN401 - vLLM's VllmConfig
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    from dooly.engines.vllm._meta_device import OffDevice

    dtype = set_default_torch_dtype(config.model_config.dtype)
    with device, OffDevice(), dtype, transformers_classes_kept():
        network: nn.Module = initialize_model(vllm_config=config)
    with OffDevice():
        _finish_layers(network, config.model_config.dtype)
    _close_experts(network)
    show_attention_calls(network)
    return network


def _finish_layers(network: nn.Module, dtype: torch.dtype) -> None:
    """Let vLLM choose the kernels of linear layers and caches, which it does in part only after weights were loaded.

    So it does with experts that it quantises itself; others are chosen by their configuration.
    """
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
    from vllm.model_executor.layers.quantization.online.moe_base import OnlineMoEMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    from dooly.engines.vllm._meta_device import UnreadWeights

    for module in network.modules():
        method: Any = getattr(module, "quant_method", None)
        is_dense = isinstance(module, (LinearBase, VocabParallelEmbedding)) and method is not None
        if is_dense or isinstance(method, OnlineMoEMethodBase):
            with UnreadWeights():
                method.process_weights_after_loading(module)
        elif isinstance(method, BaseKVCacheMethod):  # its scales start with values, and say so where none is loaded
            method.process_weights_after_loading(module)
    _finish_attention(network, dtype)


def _finish_attention(network: nn.Module, dtype: torch.dtype) -> None:
    """Let attention layers with a forward of a model's own derive the weights that it multiplies by; others do so unseen."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    from dooly.engines.vllm._meta_device import UnreadWeights

    for module in network.modules():
        if isinstance(module, AttentionLayerBase) and hasattr(module, "process_weights_after_loading"):
            owners = [next(c for c in type(module).__mro__ if n in vars(c)) for n in ("forward", "process_weights_after_loading")]
            if owners[0] is not owners[1]:
                with UnreadWeights():
                    module.process_weights_after_loading(dtype)


def _close_experts(network: nn.Module) -> None:
    """Let a mixture of experts run as one operator: on the CPU vLLM leaves it open to the compiler, which breaks the graph."""
    import torch

    for module in network.modules():
        if is_experts(module):
            runner: Any = module
            name = "moe_forward" if runner.shared_experts is None else "moe_forward_shared"
            runner._forward_entry = getattr(torch.ops.vllm, name)  # noqa: SLF001 - has no public name
