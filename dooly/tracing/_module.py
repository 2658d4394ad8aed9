"""`dooly.trace`: trace any `nn.Module`, as a decorator on its class or as a wrapper around an instance."""

from __future__ import annotations

from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, overload

from dooly.errors import InvalidInputError, TraceError, pip_install, spell
from dooly.tracing._constructor import constructed_sizes
from dooly.tracing._request_dims import check_form

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dooly.tracing._request_dims import RequestDims
    from dooly.tracing._traced import Traced

    Module = TypeVar("Module", bound=nn.Module)


@overload
def trace(
    model: type[Module], *, request_dims: RequestDims | None = None, fold_layers: bool = False
) -> Callable[..., Traced]: ...


@overload
def trace(model: nn.Module, *, request_dims: RequestDims | None = None, fold_layers: bool = False) -> Traced: ...


@overload
def trace(model: None = None, *, request_dims: RequestDims | None = None, fold_layers: bool = False) -> Callable[[Any], Any]: ...


def trace(model: Any = None, *, request_dims: RequestDims | None = None, fold_layers: bool = False) -> Any:
    """Trace an `nn.Module`: label every dimension of every operation by its origin.

    Works on an instance (`dooly.trace(model)`), as a decorator of a class (`@dooly.trace`, whose instances are then traced), and
    with arguments (`@dooly.trace(request_dims={"x": ("batch", "seq")})`). Tracing happens on the first call of each kind.

    A size that the configuration sets prints over its fields: the integer arguments of a decorated class's constructor, or the
    fields of a configuration object (a dataclass, or that of a Transformers model). To learn which, the constructor is called
    once more, on the meta device and quietly, when the table is first read.

    Args:
        model: The module, or its class.
        request_dims: Names of the request dimensions of each forward argument, by position; None, and a shorter tuple, leave a
            position unnamed. What is not named here is `argument.size(axis)`, unless the model fixes it.
        fold_layers: Trace one layer of each kind in every `nn.ModuleList`, and count the rest. For models that run their layers
            one after the other; a deep model then takes seconds instead of minutes.

    Returns:
        A `Traced` module around the module, or a factory of such for a class, which is the factory's `__wrapped__`.

    Raises:
        TraceError: torch is not installed.
        InvalidInputError: `model` is neither a module nor a module class, or `request_dims` no mapping to tuples of names.

    Examples:
        >>> import torch
        >>> traced = dooly.trace(torch.nn.Linear(64, 32), request_dims={"input": ("num_tokens",)})
        >>> traced(torch.ones(4, 64)).shape
        torch.Size([4, 32])
        >>> (operation,) = traced.traced.operations
        >>> [(dim.expr, dim.origin) for dim in operation.inputs[-1].shape]
        [('num_tokens', 'request'), ('weight.size(1)', 'config')]
    """
    try:
        from torch import nn
    except ModuleNotFoundError as error:
        raise TraceError(f"dooly.trace: {error.name} is not installed; install it with {pip_install('torch')}") from error

    if request_dims is not None:
        check_form(request_dims)
    if model is None:
        return partial(trace, request_dims=request_dims, fold_layers=fold_layers)
    from dooly.tracing._traced import Traced

    if isinstance(model, nn.Module):
        return Traced(model, request_dims, fold_layers=fold_layers)
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise InvalidInputError(f"dooly.trace: {spell(model)} is no torch.nn.Module; give a module or a module class")

    @wraps(model, updated=())
    def make(*args: object, **kwargs: object) -> Traced:
        provenance = partial(constructed_sizes, model, args, kwargs)
        return Traced(model(*args, **kwargs), request_dims, provenance, fold_layers=fold_layers)

    return make
