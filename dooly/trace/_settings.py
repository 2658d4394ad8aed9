"""The tracing settings that turn every size into a symbol, in a scope that leaves the user's process as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def symbolic_sizes() -> Iterator[None]:
    """Make Dynamo give each parameter size and each integer attribute its own symbol, for the length of the scope.

    Two sizes that happen to be equal keep separate symbols (no duck shapes); only what the model's own operators require to be
    equal is unified. Compiled code of earlier scopes is dropped on entry and exit, so no graph leaks into the user's own compiles.
    """
    import torch

    dynamo = torch._dynamo.config.patch(
        assume_static_by_default=False,
        force_parameter_static_shapes=False,
        force_nn_module_property_static_shapes=False,
        allow_unspec_int_on_nn_module=True,
        specialize_int=False,
        suppress_errors=False,
    )
    with dynamo, torch.fx.experimental._config.patch(use_duck_shape=False), torch.no_grad():
        yield
