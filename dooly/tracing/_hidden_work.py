"""Modules of PyTorch whose work no graph shows: recurrent layers that run step by step, and weights packed outside of tensors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from dooly.errors import TraceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from dooly.tracing._capture import Capture

WITHOUT_STEPS = "take nn.LSTM, which a CPU runs in one operator, or make the layer a torch.library.custom_op"
"""What to do about a recurrent layer that runs step by step."""
_IN_ONE_OPERATOR = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn"})


def _recurrent(module: nn.Module) -> dict[str, nn.Module]:
    from torch import nn

    return {path: layer for path, layer in module.named_modules() if isinstance(layer, nn.RNNBase)}


def find_unrolled(module: nn.Module) -> str | None:
    """Return the first recurrent layer within a module that PyTorch runs step by step everywhere, by path and class."""
    from torch import nn

    unrolled = ((path, layer) for path, layer in _recurrent(module).items() if not isinstance(layer, nn.LSTM))
    return next((_spell(path, layer) for path, layer in unrolled), None)


@contextmanager
def layers_whole(module: nn.Module) -> Iterator[None]:
    """Let Dynamo follow recurrent layers, which it refuses, where all of a module's can run in one operator."""
    import torch

    with torch._dynamo.config.patch(allow_rnn=find_unrolled(module) is None):
        yield


def refuse_unrolled_steps(module: nn.Module, capture: Capture) -> None:
    """Check that recurrent layers came out as one operator each, so that their steps are counted by a size.

    Raises:
        TraceError: They came out step by step, as on the meta device.
    """
    from passes.operators import operator_name

    layers = _recurrent(module)
    if layers and not any(operator_name(node) in _IN_ONE_OPERATOR for node in capture.graph.nodes):
        path, layer = next(iter(layers.items()))
        raise TraceError(
            f"{_spell(path, layer)}: PyTorch runs it step by step on this device and in this element type, so the graph would "
            "hold as many steps as this call has; trace it on a CPU in float32, or make the layer a torch.library.custom_op"
        )


def refuse_packed_weights(module: nn.Module) -> None:
    """Check that weights are tensors: those of PyTorch's eager-mode quantisation are objects, which no graph shows.

    Raises:
        TraceError: A module within holds such weights.
    """
    for path, layer in module.named_modules():
        if type(layer).__module__.startswith("torch.ao.nn.quantized") and hasattr(layer, "_packed_params"):
            raise TraceError(
                f"{_spell(path, layer)}: its quantised weights are packed outside of any tensor, and no graph shows them; "
                "trace the module as it was before it was quantised, or with weights as tensors, as torchao has them"
            )


def _spell(path: str, layer: nn.Module) -> str:
    return f"{path} ({type(layer).__name__})" if path else type(layer).__name__
