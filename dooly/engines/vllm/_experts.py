"""What identifies a mixture of experts of vLLM: how tokens are routed, what each expert computes, and in which element types.

Weights of less than two bytes lie packed, beside scales; what they compute is told by the engine's own sizes.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from dooly.engines.vllm._scalars import scalar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from dooly.engines.vllm._scalars import Scalar

_ROUTING = (
    "renormalize", "scoring_func", "use_grouped_topk", "num_expert_group", "topk_group", "routed_scaling_factor",
    "apply_router_weight_on_input", "swiglu_limit", "swiglu_alpha", "swiglu_beta",
)  # fmt: skip


def is_experts(module: nn.Module) -> bool:
    """Tell whether a module runs a mixture of experts."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    return isinstance(module, MoERunnerInterface)


def experts_attributes(runner: Any) -> dict[str, Scalar]:  # noqa: ANN401 - vLLM's MoERunner
    """Return what identifies a mixture of experts: how tokens are routed, and what each expert computes."""
    config, routed = runner.moe_config, runner.routed_experts
    routed_parameters = dict(routed.named_parameters())
    num_local = config.num_local_experts
    matrices = [p for p in routed_parameters.values() if p.dim() == len(("expert", "output", "input"))]
    others = {id(p): p for p in runner.parameters()}
    shared = [p for p in others.values() if id(p) not in set(map(id, routed_parameters.values())) and p.dim() > 1]
    found = {
        "kind": "MoE",
        "num_experts": config.num_experts,
        "num_local_experts": num_local,
        "top_k": config.experts_per_token,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.intermediate_size_per_partition,
        "activation": scalar(config.activation),
        "has_bias": config.has_bias,
        "dtype": str(config.in_dtype).removeprefix("torch."),
        "custom_routing": scalar(getattr(routed, "custom_routing_function", None)) is not None,
        "score_correction": getattr(routed, "e_score_correction_bias", None) is not None,
        "expert_parameters": sum(prod(p.shape[1:]) for p in matrices),
        "shared_parameters": sum(p.numel() for p in shared),
    } | {name: scalar(getattr(routed, name, None)) for name in _ROUTING}
    quantised = _is_quantised(matrices) or _is_quantised(shared)
    return found | _quantised_attributes(runner, routed_parameters.values(), shared) if quantised else found


def _is_quantised(parameters: Iterable[nn.Parameter]) -> bool:
    return any(p.dtype.itemsize == 1 or not p.dtype.is_floating_point for p in parameters)


def _quantised_attributes(runner: Any, routed: Iterable[nn.Parameter], shared: Iterable[nn.Parameter]) -> dict[str, Scalar]:  # noqa: ANN401 - vLLM's MoERunner
    """Return what weights stand for and what they take in memory, where those are two things."""
    config, method = runner.moe_config, runner.routed_experts.quant_method
    matrices = 2 + bool(config.is_act_and_mul)
    linear = [m for m in runner.modules() if hasattr(m, "output_size_per_partition")]
    own = {id(p) for m in linear for p in m.parameters()}
    shared = list(shared)
    return {
        "expert_parameters": matrices * config.hidden_dim * config.intermediate_size_per_partition,
        "expert_bytes": sum(p.nbytes for p in routed) // config.num_local_experts,
        "shared_parameters": sum(m.input_size_per_partition * m.output_size_per_partition for m in linear)
        + sum(p.numel() for p in shared if id(p) not in own),
        "shared_bytes": sum(p.nbytes for p in shared),
        # Kernels of packed weights want widths of whole tiles; what the model itself has is less.
        "unpadded_hidden_size": config.hidden_dim_unpadded,
        "unpadded_intermediate_size": config.intermediate_size_per_partition_unpadded,
        "quant_method": type(method).__name__,
        "kernel": getattr(getattr(method, "experts_cls", None), "__name__", None),
    }
