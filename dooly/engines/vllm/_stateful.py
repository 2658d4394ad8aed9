"""Which modules of vLLM keep state beside their inputs, and what identifies each: attention, recurrent state, experts.

vLLM's own base classes tell: `AttentionLayerBase` for all that has a cache, the runner of a mixture of experts. Nothing here
knows a model or a layer by name. Layer numbers and names never enter.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from dooly.engines.vllm._experts import experts_attributes, is_experts
from dooly.engines.vllm._scalars import scalar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch import nn

    from dooly.engines.vllm._scalars import Scalar

_ATTENTION = (
    "num_heads", "num_kv_heads", "head_size", "head_size_v", "scale", "sliding_window", "logits_soft_cap", "has_sink",
    "kv_cache_dtype", "attn_type", "attention_chunk_size", "alibi_slopes",
)  # fmt: skip
_LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def stateful_attributes(module: nn.Module) -> dict[str, Scalar] | None:
    """Return what identifies a stateful module of vLLM, or None for any other module."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
    from vllm.v1.sample.sampler import Sampler

    if isinstance(module, Sampler):
        return {"kind": "Sampler", "sampling": "random"}
    if is_experts(module):
        return experts_attributes(module)
    if not isinstance(module, AttentionLayerBase):
        return None
    if hasattr(module, "get_state_shape"):
        return _recurrent_attributes(module)
    owners = (module, getattr(module, "impl", None))
    names = (*_ATTENTION, *(_LATENT if hasattr(module, "kv_lora_rank") else ()))
    found = {"kind": type(module).__name__} | {name: scalar(_first(owners, name)) for name in names}
    if found["kv_cache_dtype"] == "auto" and (dtype := getattr(module, "kv_cache_torch_dtype", None)) is not None:
        found["kv_cache_dtype"] = str(dtype).removeprefix("torch.")
    # Only where it is: what attends to some tokens alone is another operation, and all others are as they were.
    return found | {"is_sparse": True} if getattr(module, "use_sparse", False) else found


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


@contextmanager
def watch_attention(network: nn.Module, enter: Callable[[str], None], leave: Callable[[str], None]) -> Iterator[None]:
    """Call back, within the scope, before and after each kernel of an attention layer, with the layer's path.

    Compiled code calls an operator, which looks the layer's implementation up: no module is called, so that no hook would tell.
    """
    watched = [
        (path, module.impl, name)
        for path, module in network.named_modules()
        if is_watchable(module)
        for name in ("do_kv_cache_update", "forward")
        if hasattr(module.impl, name)
    ]
    with ExitStack() as scope:
        for path, kernels, name in watched:
            # An attribute of its own may be there already, another scope's among them: it is put back, the last one first.
            own = {name: vars(kernels)[name]} if name in vars(kernels) else {}
            scope.callback(_restore, kernels, name, own)
            setattr(kernels, name, partial(_watched, getattr(kernels, name), path, enter, leave))
        yield


def _restore(kernels: object, name: str, own: Mapping[str, object]) -> None:
    del vars(kernels)[name]
    vars(kernels).update(own)


def is_watchable(module: nn.Module) -> bool:
    """Tell attention layers whose every kernel is a call of their implementation."""
    from vllm.model_executor.layers.attention import Attention

    return isinstance(module, Attention)


def _watched(
    kernel: Callable[..., object],
    path: str,
    enter: Callable[[str], None],
    leave: Callable[[str], None],
    *args: object,
    **named: object,
) -> object:
    enter(path)
    result = kernel(*args, **named)
    leave(path)
    return result


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


def _recurrent_attributes(module: Any) -> dict[str, Scalar]:  # noqa: ANN401 - vLLM's MambaBase
    """Return what identifies a layer with a recurrent state: its kind, and the shapes and types of its states."""
    shapes = ", ".join(str(tuple(shape)) for shape in module.get_state_shape())
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in module.get_state_dtype())
    return {
        "kind": type(module).__name__,
        "mamba_type": scalar(module.mamba_type),
        "state_shapes": shapes,
        "state_dtypes": dtypes,
    }
