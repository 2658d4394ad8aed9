"""Trace what one step of Transformers' continuous batching runs: all requests' tokens in one row, logits of the last of each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dooly.device import cpu_name
from dooly.dtypes import cache_item_bytes, item_bytes
from dooly.engines.transformers._build import meta_model, path_of_head
from dooly.engines.transformers._library import quiet_transformers
from dooly.engines.transformers._settings import check_settings
from dooly.engines.transformers._shown import GreedySampler, show_attention, shown_attributes
from dooly.errors import InvalidInputError, TraceError, UnsupportedModelError
from dooly.tracing import TracedModel, capture_forward, fold_layers, instance_sizes, tabulate

if TYPE_CHECKING:
    from collections.abc import Mapping

    import sympy

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.tracing import TracedOperation

_NUM_TOKENS, _NUM_REQS, _NUM_KEYS = 23, 5, 37
_REQUEST_DIMS: dict[str, tuple[str | None, ...]] = {
    "input_ids": (None, "num_tokens"),
    "position_ids": (None, "num_tokens"),
    "logits_to_keep": ("num_reqs",),
}
_SAMPLED_DIMS: dict[str, tuple[str | None, ...]] = {"scores": (None, "num_reqs", None)}


def trace_batched_model(
    model: ModelSource, serving: ServingConfig, *, pipeline_rank: int = 0, hardware: str | None = None
) -> TracedModel:
    """Trace one step of a causal language model as Transformers batches requests, at full size and without weights.

    Args:
        model: The model.
        serving: How it is served; `dtype` alone shapes the trace.
        pipeline_rank: Must be 0: all of the model runs on one device.
        hardware: Must be None: these models run the same operations on every device.

    Raises:
        EngineError: Transformers is not installed.
        InvalidInputError: A setting has no meaning for this engine.
        UnsupportedModelError: Transformers cannot build the model, it is quantised, or it computes all tokens' logits.
        TraceError: The model's code could not be captured in one graph.
    """
    check_settings(serving)
    if pipeline_rank or hardware is not None:
        flag = "--hardware" if hardware is not None else "--pipeline-rank"
        raise InvalidInputError(f"{flag}: --engine {serving.engine} runs on this machine's CPU; leave it out")
    with quiet_transformers() as transformers:
        network: Any = meta_model(model, serving.dtype)
        if not network._supports_logits_to_keep():  # noqa: SLF001 - has no public name
            raise UnsupportedModelError(
                f"{model.name}: {type(network).__name__} computes the logits of all tokens, which is not measured yet; "
                "use --engine vllm"
            )
        show_attention(network)
        try:
            operations = _model(network) + _sampler(network.config.get_text_config().vocab_size)
        except TraceError as error:
            raise TraceError(f"{model.name}: {error}") from error
    environment = {
        "engine": "transformers",
        "engine_version": transformers.__version__,
        "torch_version": torch.__version__,
        "dtype": serving.dtype,
        "device": cpu_name(),
        "platform": "cpu",
    }
    return TracedModel(model.name, environment, operations)


def _model(network: Any) -> tuple[TracedOperation, ...]:  # noqa: ANN401 - a PreTrainedModel
    arguments = _arguments(network)
    with torch.no_grad():
        network(**arguments)  # shows where attention is
    with fold_layers(network, shown_attributes, first_apart=False) as counts:
        capture = capture_forward(network, kwargs=arguments)
    stateful = {path: found for path, m in network.named_modules() if (found := shown_attributes(m)) is not None}
    graph = capture.describe(_REQUEST_DIMS, stateful, provenance=instance_sizes(network))
    rows = tabulate(graph, stage="decoder", counts=counts, state_cost=attention_cost, model_class=type(network).__name__)
    head = path_of_head(network)
    return tuple(replace(row, stage="logits") if row.module == head else row for row in rows)


def _arguments(network: Any) -> dict[str, Any]:  # noqa: ANN401 - a PreTrainedModel
    """Return a step's arguments, as Transformers' own inputs of a batch are; a mask for each kind of attention."""
    from transformers.generation.continuous_batching.cache import group_layers_by_attn_type

    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.int32, device="meta")
    mask = torch.zeros(1, 1, _NUM_TOKENS, _NUM_KEYS, dtype=network.dtype, device="meta")
    kinds = group_layers_by_attn_type(network.config.get_text_config())
    return {
        "input_ids": tokens,
        "position_ids": tokens,
        "attention_mask": mask if len(kinds) == 1 else dict.fromkeys(kinds, mask),
        "logits_to_keep": torch.zeros(_NUM_REQS, dtype=torch.int32, device="meta"),
        "use_cache": False,
    }


def _sampler(vocab_size: int) -> tuple[TracedOperation, ...]:
    """Trace what chooses the tokens of a step."""

    class Choice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sampler = GreedySampler()
            self.vocab_size = vocab_size

        def forward(self, scores: torch.Tensor) -> torch.Tensor:
            torch._check(scores.shape[2] == self.vocab_size)  # noqa: SLF001 - as PyTorch documents it
            output_ids = scores.new_empty(1, scores.shape[1], dtype=torch.int32)
            self.sampler(scores, output_ids)
            return output_ids

    choice = Choice()
    stateful = {path: found for path, m in choice.named_modules() if (found := shown_attributes(m)) is not None}
    capture = capture_forward(choice, (torch.zeros(1, _NUM_REQS, vocab_size, device="meta"),))
    return tabulate(capture.describe(_SAMPLED_DIMS, stateful), stage="sample")


def attention_cost(attributes: Mapping[str, Any]) -> tuple[sympy.Expr, sympy.Expr] | None:
    """Return FLOPs and least bytes of attention over a batch in one row: each query meets the keys of all requests.

    A mask keeps the requests apart, after the products. Keys and values of the step are written to the cache; those of all
    positions, the step's own among them as `kv_tokens` counts, are taken out of it, repeated for the heads that share them, and
    read; the mask is read for each head.
    """
    import sympy

    if "num_kv_heads" not in attributes:
        return None
    num_tokens, kv_tokens = sympy.symbols("num_tokens kv_tokens", integer=True, positive=True)
    heads, size = attributes["num_heads"], attributes["head_size"] + attributes["head_size_v"]
    item, activations = item_bytes(attributes["dtype"]), heads * size * item_bytes(attributes["dtype"])
    flops = 2 * heads * size * num_tokens * kv_tokens
    cache = attributes["num_kv_heads"] * size * cache_item_bytes(attributes["kv_cache_dtype"], attributes["dtype"])
    traffic = (2 * cache + activations) * kv_tokens + (cache + activations) * num_tokens + heads * item * num_tokens * kv_tokens
    return sympy.expand(flops), sympy.expand(traffic)
