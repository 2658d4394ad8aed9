"""The tracing settings that turn every size into a symbol, in a scope that leaves the user's process as it was."""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    """Let `torch.nn.LayerNorm` normalise what its weight is as large as: its own tuple of plain numbers would fix the size."""
    import torch
    from torch.nn.functional import layer_norm

    forward = torch.nn.LayerNorm.forward

    def by_weight(self: torch.nn.LayerNorm, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name
        shape = self.normalized_shape if self.weight is None else self.weight.shape
        return layer_norm(input, shape, self.weight, self.bias, self.eps)

    torch.nn.LayerNorm.forward = by_weight  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.LayerNorm.forward = forward  # type: ignore[method-assign]
