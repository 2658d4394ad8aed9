"""Build a vLLM model at full size on the meta device, and trace what one step of it runs."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines._attention import attention_cost
from dooly.engines.vllm._config import engine_config, first_line
from dooly.engines.vllm._version import fresh_module_caches, import_vllm
from dooly.errors import TraceError, UnsupportedModelError
from dooly.trace import Capture, TracedModel, TracedOperation, dooly_backend, fold_layers, tabulate, tracing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from dooly.engines._config import ModelSource, ServingConfig

_NUM_TOKENS = 23
_NUM_REQS = 5
_TOKEN_ARGUMENTS: Mapping[str, tuple[str | None, ...]] = {"input_ids": ("num_tokens",), "positions": ("num_tokens",)}


def trace_vllm_model(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace decoder, logits and sampling of a model at full size, without weights.

    Raises:
        UnsupportedModelError: vLLM does not know the architecture.
        TraceError: The model's code could not be captured in one graph.
    """
    vllm = import_vllm()
    import torch

    config = engine_config(model, serving)
    with _meta_model(model, config) as network:
        try:
            operations = (*_decoder(network, config), *_head(network, config))
        except torch._dynamo.exc.TorchDynamoException as error:
            raise TraceError(f"{model.name}: torch.compile cannot capture the model: {first_line(error)}") from error
    environment = {
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "torch_version": torch.__version__,
        "dtype": serving.dtype,
        "tensor_parallel_size": serving.tensor_parallel_size,
        "platform": str(vllm.platforms.current_platform.device_type),
    }
    return TracedModel(model.name, environment, operations)


def stateful_attributes(module: nn.Module) -> dict[str, bool | int | float | str | None] | None:
    """Return what identifies a stateful module of vLLM (attention with its KV cache), or None for any other module."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    if not isinstance(module, AttentionLayerBase):
        return None
    owners = (module, getattr(module, "impl", None))
    found: dict[str, bool | int | float | str | None] = {"kind": type(module).__name__}
    for name in _STATE:
        value = next((getattr(o, name) for o in owners if hasattr(o, name)), None)
        found[name] = value.value if isinstance(value, Enum) else value
    if found["kv_cache_dtype"] == "auto" and hasattr(module, "kv_cache_torch_dtype"):
        found["kv_cache_dtype"] = str(module.kv_cache_torch_dtype).removeprefix("torch.")
    return found


_STATE = (
    "num_heads", "num_kv_heads", "head_size", "head_size_v", "scale", "sliding_window", "logits_soft_cap", "has_sink",
    "kv_cache_dtype", "attn_type",
)  # fmt: skip


@contextmanager
def _meta_model(model: ModelSource, config: Any) -> Iterator[nn.Module]:  # noqa: ANN401 - vLLM's VllmConfig
    """Build the model on the meta device within vLLM's configuration and parallel state."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.distributed import (
        cleanup_dist_env_and_memory,
        init_distributed_environment,
        initialize_model_parallel,
    )
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(config), fresh_module_caches():
        init_distributed_environment(1, 0, f"file://{Path(folder) / 'rendezvous'}", 0, "gloo")
        try:
            initialize_model_parallel(1, 1)
            with torch.device("meta"), set_default_torch_dtype(config.model_config.dtype):
                try:
                    network = initialize_model(vllm_config=config)
                except (ValueError, KeyError, AttributeError, AssertionError) as error:
                    raise UnsupportedModelError(f"{model.name}: vLLM cannot build it: {first_line(error)}") from error
            _finish_linear_layers(network)
            yield network
        finally:
            cleanup_dist_env_and_memory()


def _finish_linear_layers(network: nn.Module) -> None:
    """Let vLLM choose each linear layer's kernel, which on the CPU happens only after weights were loaded."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in network.modules():
        if isinstance(module, (LinearBase, VocabParallelEmbedding)) and module.quant_method is not None:
            module.quant_method.process_weights_after_loading(module)


def _decoder(network: nn.Module, config: Any) -> tuple[TracedOperation, ...]:  # noqa: ANN401 - vLLM's VllmConfig
    import torch
    from vllm.forward_context import set_forward_context

    tokens = torch.zeros(_NUM_TOKENS, dtype=torch.int64, device="meta")
    with fold_layers(network, stateful_attributes) as counts, set_forward_context(None, config):
        stateful = {p: s for p, m in network.named_modules() if (s := stateful_attributes(m)) is not None}
        with tracing() as captures:
            _compiled(network)(tokens, tokens, None, None)
        graph = _only(captures).describe(request_dims=_TOKEN_ARGUMENTS, stateful=stateful)
        return tabulate(graph, stage="decoder", counts=counts, stateful_cost=attention_cost)


def _head(network: nn.Module, config: Any) -> tuple[TracedOperation, ...]:  # noqa: ANN401 - vLLM's VllmConfig
    """Trace what follows the decoder: logits of the sampled positions, and the sampler."""
    import torch
    from torch import nn
    from vllm.v1.sample.sampler import Sampler

    class Head(nn.Module):
        """Logits, then one sampled token a request."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.sampler = Sampler()
            # The platform's own kernel has no fake form; which kernel runs belongs to the environment, not to the operation.
            self.sampler.topk_topp_sampler.forward = self.sampler.topk_topp_sampler.forward_native

        def forward(self, hidden_states: torch.Tensor, sampling: object) -> torch.Tensor:
            logits = self.network.compute_logits(hidden_states)  # type: ignore[operator]
            sampled: torch.Tensor = self.sampler(logits, sampling).sampled_token_ids
            return sampled

    hidden_size = config.model_config.get_hidden_size()
    hidden_states = torch.zeros(_NUM_REQS, hidden_size, dtype=config.model_config.dtype, device="meta")
    with torch.device("meta"), tracing() as captures:
        _compiled(Head())(hidden_states, _random_sampling())
    request_dims = {"hidden_states": ("num_reqs", None), "sampling.temperature": ("num_reqs",)}
    graph = _only(captures).describe(request_dims, {"sampler": {"kind": "Sampler", "sampling": "random"}})
    rows = tabulate(graph, stage="logits")
    return tuple(_in_engine(row) for row in rows)


def _in_engine(row: TracedOperation) -> TracedOperation:
    """Return an operation of the head with its module path as the engine's model has it."""
    path = row.module.removeprefix("network.")
    stage = "sample" if path == "sampler" else "logits"
    return replace(row, module=path, placements=((path, row.count),), stage=stage)


def _random_sampling() -> Any:  # noqa: ANN401 - vLLM's SamplingMetadata
    """Return the sampling settings of requests at temperature 1, as vLLM's `SamplingParams` default to."""
    import torch
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    ones = torch.ones(_NUM_REQS, device="meta")
    return SamplingMetadata(
        temperature=ones,
        all_greedy=False,
        all_random=True,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=ones,
        presence_penalties=ones,
        repetition_penalties=ones,
        output_token_ids=[[] for _ in range(_NUM_REQS)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )


def _compiled(module: nn.Module) -> Any:  # noqa: ANN401 - a compiled callable
    import torch

    # A backend of its own: torch hands equal models the graph that it compiled first, and would capture nothing here.
    return torch.compile(module, backend=partial(dooly_backend), fullgraph=True)


def _only(captures: list[Capture]) -> Capture:
    (capture,) = captures
    return capture
