"""Trace what one step of a vLLM model runs, at full size and without weights: decoder, logits and sampling of one rank."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

from dooly.engines._state_costs import state_cost
from dooly.engines.vllm._build import meta_model
from dooly.engines.vllm._config import compiles, engine_config
from dooly.engines.vllm._parallel import receive, send
from dooly.engines.vllm._stateful import held_parameters, is_watchable, stateful_attributes
from dooly.engines.vllm._version import elsewhere, import_vllm, process_kept
from dooly.errors import TraceError, UnsupportedModelError
from dooly.tracing import TracedModel, TracedOperation, capture_forward, fold_layers, fold_layers_in_order, tabulate
from passes import PassError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch
    from torch import nn

    from dooly.engines._config import ModelSource, ServingConfig
    from dooly.tracing import Provenance
    from passes.graph import CapturedGraph

_NUM_TOKENS = 23
_NUM_REQS = 5


def trace_here(model: ModelSource, serving: ServingConfig, pipeline_rank: int) -> TracedModel:
    """Trace decoder, logits and sampling of a model as one rank runs them on the device that vLLM finds in this process.

    Raises:
        UnsupportedModelError: vLLM does not know the architecture, cannot divide it so, or runs attention outside its modules.
        TraceError: The model's code could not be captured in one graph.
        EngineError: vLLM is not installed, or the process belongs to a PyTorch process group.
    """
    with process_kept():
        return _trace(model, serving, pipeline_rank)


def _trace(model: ModelSource, serving: ServingConfig, pipeline_rank: int) -> TracedModel:
    vllm = import_vllm()
    import torch

    config, compiled = engine_config(model, serving), compiles(serving)
    if compiled:  # Dooly's own capture stands in the compiler's place
        config.compilation_config.mode = vllm.config.CompilationMode.NONE
    with meta_model(model, serving, config, pipeline_rank) as (network, provenance):
        try:
            if compiled:
                _refuse_unwatchable(model, network)
            operations = _decoder(network, config, provenance, compiled=compiled)
            _refuse_hidden_state(model, operations, config)
            if pipeline_rank == serving.pipeline_parallel_size - 1:
                operations += _head(network, config, provenance)
        except TraceError as error:
            hint = elsewhere() if config.model_config.quantization is not None else ""
            raise TraceError(f"{model.name}: {error}{hint}") from error
        except PassError as error:
            raise UnsupportedModelError(f"{model.name}: {error}") from error
    environment = {
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "torch_version": torch.__version__,
        "dtype": serving.dtype,
        "tensor_parallel_size": serving.tensor_parallel_size,
        "pipeline_parallel_size": serving.pipeline_parallel_size,
        "pipeline_rank": pipeline_rank,
        "enable_expert_parallel": serving.enable_expert_parallel,
        "quantization": config.model_config.quantization,
        "kv_cache_dtype": config.cache_config.cache_dtype,
        "device": vllm.platforms.current_platform.get_device_name(),
        "platform": str(vllm.platforms.current_platform.device_type),
    }
    mode = {"execution_mode": "compiled"} if compiled else {}
    return TracedModel(model.name, environment | mode, operations)


def _decoder(
    network: nn.Module,
    config: Any,  # noqa: ANN401 - vLLM's VllmConfig
    provenance: Provenance,
    *,
    compiled: bool,
) -> tuple[TracedOperation, ...]:
    import torch
    from vllm.forward_context import set_forward_context

    tokens = torch.zeros(_NUM_TOKENS, dtype=torch.int64, device="meta")
    received = _received(network, config)
    arguments = ("input_ids", "positions", *(f"received.{name}" for name in received or ()))
    fold = fold_layers_in_order if compiled else fold_layers
    with _pipelined(network), fold(network, stateful_attributes) as counts, set_forward_context(None, config):
        capture = capture_forward(network, (tokens, tokens, received))
        describe = partial(capture.describe, provenance=provenance)
        request_dims = dict.fromkeys(arguments, ("num_tokens",))
        return _tabulate(describe, network, request_dims, "decoder", counts, compiled=compiled)


def _refuse_unwatchable(model: ModelSource, network: nn.Module) -> None:
    """Refuse to split a model into compiled pieces where something else than attention bounds them, which cannot be timed."""
    for path, module in network.named_modules():
        if stateful_attributes(module) is not None and not is_watchable(module):
            msg = f"{model.name}: {path} ({type(module).__name__}) cannot be timed within compiled code"
            raise UnsupportedModelError(f"{msg}; leave --no-enforce-eager out")


def _refuse_hidden_state(model: ModelSource, operations: tuple[TracedOperation, ...], config: Any) -> None:  # noqa: ANN401 - VllmConfig
    """Refuse a model whose attention no module call shows: some versions of vLLM run models from Transformers so."""
    layers = config.compilation_config.static_forward_context
    if layers and not any(op.stateful for op in operations):
        msg = (
            f"{model.name}: {next(iter(layers))} runs outside the model's module calls (vLLM takes this model from Transformers)"
        )
        raise UnsupportedModelError(f"{msg}; trace it with --engine torch")


@contextmanager
def _pipelined(network: Any) -> Iterator[None]:  # noqa: ANN401 - a vLLM model
    """Make each tensor that the model takes from or hands to another rank of the pipeline an operation, within the scope."""
    from vllm.sequence import IntermediateTensors

    def forward(
        self: nn.Module, input_ids: torch.Tensor, positions: torch.Tensor, received: dict[str, torch.Tensor] | None
    ) -> object:
        taken = None if received is None else IntermediateTensors({name: receive(t) for name, t in received.items()})
        # By name, as vLLM's runner does: models order their arguments differently.
        result = type(self).forward(
            self, input_ids=input_ids, positions=positions, intermediate_tensors=taken, inputs_embeds=None
        )
        return {name: send(t) for name, t in result.tensors.items()} if isinstance(result, IntermediateTensors) else result

    network.forward = MethodType(forward, network)
    try:
        yield
    finally:
        del network.forward


def _received(network: Any, config: Any) -> dict[str, torch.Tensor] | None:  # noqa: ANN401 - a vLLM model, and its VllmConfig
    """Return what the previous rank of the pipeline hands over; None on the first rank."""
    import torch
    from vllm.distributed import get_pp_group

    if get_pp_group().is_first_rank:
        return None
    tensors = network.make_empty_intermediate_tensors(_NUM_TOKENS, config.model_config.dtype, torch.device("meta")).tensors
    return dict(tensors)


def _tabulate(  # noqa: PLR0913, PLR0917 - what was captured, and what tells one stage from another
    describe: Callable[..., CapturedGraph],
    root: nn.Module,
    request_dims: Mapping[str, tuple[str | None, ...]],
    stage: str,
    counts: Mapping[str, int],
    network: str = "",
    *,
    compiled: bool = False,
) -> tuple[TracedOperation, ...]:
    """Return a capture's operations, with paths below the engine's model, which lies at `network` in the captured module."""
    names = {id(p): name for name, p in root.named_parameters()}
    # A tied weight goes by one name, wherever the model reads it.
    known = {name: names[id(p)] for name, p in root.named_parameters(remove_duplicate=False)}
    stateful = {path: s for path, m in root.named_modules() if (s := stateful_attributes(m)) is not None}
    held = {path: {names[id(p)]: p for p in held_parameters(root.get_submodule(path))} for path in stateful}
    graph = describe(request_dims, stateful, held)
    name = type(root).__name__
    rows = tabulate(graph, stage=stage, counts=counts, state_cost=state_cost, model_class=name, compiled=compiled)
    return tuple(_in_engine(row, known, network) for row in rows)


def _head(
    network: nn.Module,
    config: Any,  # noqa: ANN401 - vLLM's VllmConfig
    provenance: Provenance,
) -> tuple[TracedOperation, ...]:
    """Trace what follows the decoder: logits of the sampled positions, and the sampler."""
    import torch
    from torch import nn
    from vllm.v1.sample.sampler import Sampler

    class Head(nn.Module):
        """Logits, then one sampled token a request."""

        width: int | None = None

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.sampler = Sampler()
            # The platform's own kernel has no fake form; which kernel runs belongs to the environment, not to the operation.
            self.sampler.topk_topp_sampler.forward = self.sampler.topk_topp_sampler.forward_native

        def forward(self, hidden_states: torch.Tensor, sampling: object) -> torch.Tensor:
            if self.width is not None:
                torch._check(hidden_states.shape[1] == self.width)  # noqa: SLF001 - as PyTorch documents it
            logits = self.network.compute_logits(hidden_states)  # type: ignore[operator]
            sampled: torch.Tensor = self.sampler(logits, sampling).sampled_token_ids
            return sampled

    hidden_size = config.model_config.get_hidden_size()
    hidden_states = torch.zeros(_NUM_REQS, hidden_size, dtype=config.model_config.dtype, device="meta")
    head = Head()

    def trace() -> tuple[TracedOperation, ...]:
        with torch.device("meta"):
            capture = capture_forward(head, (hidden_states, _random_sampling()))
        request_dims = {"hidden_states": ("num_reqs", None), "sampling.temperature": ("num_reqs",)}
        describe = partial(capture.describe, provenance=provenance.below("network"))
        return _tabulate(describe, head, request_dims, "logits", {}, "network")

    found = trace()
    if any("hidden_states.size" in dim for op in found for dim in op.request_dims):
        # Packed weights do not tell the width that they stand for: no operator says that it is the model's.
        head.width = hidden_size
        return trace()
    return found


def _in_engine(row: TracedOperation, known: Mapping[str, str], network: str) -> TracedOperation:
    """Return an operation with module and parameter paths as the engine's model has them.

    What lies outside of the model, as the sampler does, keeps its path, and its stage tells it from the model's own modules.

    Args:
        row: The operation, with paths below the captured module.
        known: The name that a parameter goes by in the captured module, by each of its names.
        network: Path of the engine's model in the captured module.
    """
    inputs = tuple(replace(t, parameter=t.parameter and _below(known.get(t.parameter, t.parameter), network)) for t in row.inputs)
    return replace(
        row,
        module=_below(row.module, network),
        placements=tuple((_below(path, network), count) for path, count in row.placements),
        inputs=inputs,
        stage="sample" if network and row.module == "sampler" else row.stage,
    )


def _below(path: str, network: str) -> str:
    """Return a path as the engine's model has it; one that lies elsewhere as it is."""
    return path[len(network) + 1 :] if f"{path}.".startswith(f"{network}.") else path


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
