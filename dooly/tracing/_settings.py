"""The tracing settings that turn every size into a symbol, in a scope that leaves the user's process as it was."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Make Dynamo give each parameter size and each integer attribute its own symbol, for the length of the scope.

    Two sizes that happen to be equal keep separate symbols (no duck shapes); only what the model's own operators require to be
    equal is unified. Floating-point attributes, such as a norm's epsilon, enter by value. A class may be traced often. What torch
    logs of an operator that fails on fake tensors, a traceback to stderr beside the error that it raises, is not logged.
    """
    import torch

    dynamo = torch._dynamo.config.patch(
        assume_static_by_default=False,
        force_parameter_static_shapes=False,
        force_nn_module_property_static_shapes=False,
        allow_unspec_int_on_nn_module=True,
        specialize_int=False,
        specialize_float=True,
        recompile_limit=sys.maxsize,
        accumulated_recompile_limit=sys.maxsize,
        suppress_errors=False,
        fake_tensor_cache_enabled=False,  # its keys and entries are made of symbols too: a miss and a hit cost more than a shape
    )
    shapes = torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]  # noqa: SLF001 - has no public name
    log = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, log.disabled = log.disabled, True
    try:
        with dynamo, shapes, torch.no_grad(), _norms_by_their_weights():
            yield
    finally:
        log.disabled = disabled


@contextmanager
def _norms_by_their_weights() -> Iterator[None]:
    """Let layer norms normalise what their weight is as large as: their own tuple of plain numbers would fix the size."""
    import torch
    from torch.nn import functional

    def layer_norm(self: torch.nn.LayerNorm, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        return functional.layer_norm(input, _normalized_shape(self), self.weight, self.bias, self.eps)

    def rms_norm(self: torch.nn.RMSNorm, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        return functional.rms_norm(input, _normalized_shape(self), self.weight, self.eps)

    with ExitStack() as scope:
        for kind, forward in ((torch.nn.LayerNorm, layer_norm), (torch.nn.RMSNorm, rms_norm)):
            scope.callback(setattr, kind, "forward", kind.forward)
            setattr(kind, "forward", forward)  # noqa: B010 - a method that torch declares
        yield


def _normalized_shape(norm: Any) -> Sequence[int]:  # noqa: ANN401 - either norm
    shape: Sequence[int] = norm.normalized_shape if norm.weight is None else norm.weight.shape
    return shape
