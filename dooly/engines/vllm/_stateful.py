"""Which modules of vLLM keep state beside their inputs, and what identifies each: attention, recurrent state, experts.

vLLM's own base classes tell: `AttentionLayerBase` for all that has a cache, the runner of a mixture of experts. Nothing here
knows a model or a layer by name. Layer numbers and names never enter.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    Scalar = bool | int | float | str | None

_ATTENTION = (
    "num_heads", "num_kv_heads", "head_size", "head_size_v", "scale", "sliding_window", "logits_soft_cap", "has_sink",
    "kv_cache_dtype", "attn_type", "attention_chunk_size", "alibi_slopes",
)  # fmt: skip
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_ROUTING = (
    "renormalize", "scoring_func", "use_grouped_topk", "num_expert_group", "topk_group", "routed_scaling_factor",
    "apply_router_weight_on_input", "swiglu_limit", "swiglu_alpha", "swiglu_beta",
)  # fmt: skip


def stateful_attributes(module: nn.Module) -> dict[str, Scalar] | None:
    """Return what identifies a stateful module of vLLM, or None for any other module."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.sample.sampler import Sampler

    if isinstance(module, Sampler):
        return {"kind": "Sampler", "sampling": "random"}
    if is_experts(module):
        return _experts_attributes(module)
    if not isinstance(module, AttentionLayerBase):
        return None
    if hasattr(module, "get_state_shape"):
        return _recurrent_attributes(module)
    owners = (module, getattr(module, "impl", None))
    names = (*_ATTENTION, *(_LATENT if hasattr(module, "kv_lora_rank") else ()))
    found = {"kind": type(module).__name__} | {name: _scalar(_first(owners, name)) for name in names}
    if found["kv_cache_dtype"] == "auto" and (dtype := getattr(module, "kv_cache_torch_dtype", None)) is not None:
        found["kv_cache_dtype"] = str(dtype).removeprefix("torch.")
    return found


def is_experts(module: nn.Module) -> bool:
    """Tell whether a module runs a mixture of experts."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    return isinstance(module, MoERunnerInterface)


def show_attention_calls(network: nn.Module) -> None:
    """Have a model call its attention layers where it runs their `forward` alone, which shows in no graph and to no hook.

    So vLLM runs models that it has no code of its own for, and takes from Transformers.
    """
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.model_executor.models.transformers.base import Base

    if isinstance(network, Base):
        for layer in network.modules():
            if isinstance(layer, AttentionLayerBase):
                layer.__class__ = _called_by_forward(type(layer))  # type: ignore[arg-type]


@cache
def _called_by_forward(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of the same name whose `forward` calls the module, which then runs the forward that it inherits."""

    def forward(self: Any, *args: object, **kwargs: object) -> object:  # noqa: ANN401 - a module with a mark
        if self.is_called:
            return self.called_forward(*args, **kwargs)
        self.is_called = True
        try:
            return self(*args, **kwargs)
        finally:
            self.is_called = False

    members = {"__module__": kind.__module__, "forward": forward, "called_forward": kind.forward, "is_called": False}
    return type(kind.__name__, (kind,), members)


def held_parameters(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters that a stateful module can read beside its operands.

    They are those of the module and its children, and those that its implementation holds (attention sinks, up-projections).
    """
    from torch import nn

    held: list[object] = [*module.parameters()]
    for value in vars(getattr(module, "impl", module)).values():
        held += value.parameters() if isinstance(value, nn.Module) else [value]
    return tuple({id(p): p for p in held if isinstance(p, nn.Parameter)}.values())


def _first(owners: Iterable[object], name: str) -> object:
    return next((getattr(o, name) for o in owners if hasattr(o, name)), None)


def _scalar(value: object) -> Scalar:
    """Return an attribute as a plain value: enumerations by value, anything else by whether it is there."""
    if isinstance(value, Enum):
        value = value.value
    return value if isinstance(value, (bool, int, float, str, type(None))) else True


def _recurrent_attributes(module: Any) -> dict[str, Scalar]:  # noqa: ANN401 - vLLM's MambaBase
    """Return what identifies a layer with a recurrent state: its kind, and the shapes and types of its states."""
    shapes = ", ".join(str(tuple(shape)) for shape in module.get_state_shape())
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in module.get_state_dtype())
    return {
        "kind": type(module).__name__,
        "mamba_type": _scalar(module.mamba_type),
        "state_shapes": shapes,
        "state_dtypes": dtypes,
    }


def _experts_attributes(runner: Any) -> dict[str, Scalar]:  # noqa: ANN401 - vLLM's MoERunner
    """Return what identifies a mixture of experts: how tokens are routed, and what each expert computes."""
    config, routed = runner.moe_config, runner.routed_experts
    routed_parameters = dict(routed.named_parameters())
    num_local = config.num_local_experts
    matrices = [p for p in routed_parameters.values() if p.dim() == len(("expert", "output", "input"))]
    others = {id(p): p for p in runner.parameters()}
    shared = [p for p in others.values() if id(p) not in set(map(id, routed_parameters.values())) and p.dim() > 1]
    return {
        "kind": "MoE",
        "num_experts": config.num_experts,
        "num_local_experts": num_local,
        "top_k": config.experts_per_token,
        "hidden_size": config.hidden_dim,
        "intermediate_size": config.intermediate_size_per_partition,
        "activation": _scalar(config.activation),
        "has_bias": config.has_bias,
        "dtype": str(config.in_dtype).removeprefix("torch."),
        "custom_routing": _scalar(getattr(routed, "custom_routing_function", None)) is not None,
        "score_correction": getattr(routed, "e_score_correction_bias", None) is not None,
        "expert_parameters": sum(prod(p.shape[1:]) for p in matrices),
        "shared_parameters": sum(p.numel() for p in shared),
    } | {name: _scalar(getattr(routed, name, None)) for name in _ROUTING}
