"""The device on which models are built: tensors have sizes only, but for small ones, whose values building may read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MAX_VALUES = 1024
"""Elements of the largest tensor that keeps its values: a table with one entry a head or an expert."""
_WITHOUT_VALUES = frozenset({torch.empty, torch.empty_strided, torch.empty_permuted})
"""What makes weights: nothing can be read of them before they load."""


class MetaDevice(TorchFunctionMode):
    """Make tensors on the meta device in the scope, as `torch.device("meta")` does, and those of few elements in memory.

    Attention slopes, tables of experts and constants of activations are read while a model is built. Where tensors of both kinds
    meet in one operation, the result has sizes only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Run a function of PyTorch.

        Raises:
            NotImplementedError: It would write into a tensor in memory what has no values.
        """
        named = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
        has_meta = any(tensor.is_meta for tensor in tensors)
        if func in _device_constructors() and named.get("device") is None:
            made = func(*args, **named | {"device": "meta"})
            has_values = not has_meta and func not in _WITHOUT_VALUES and made.numel() <= _MAX_VALUES
            return func(*args, **named | {"device": "cpu"}) if has_values else made
        if has_meta and not all(tensor.is_meta for tensor in tensors):
            target = named.get("out", args[0] if _is_in_place(func) else None)
            if isinstance(target, torch.Tensor) and not target.is_meta:
                name = getattr(func, "__name__", func)
                raise NotImplementedError(f"{name} writes into a small tensor what only has sizes, of a meta tensor")
            if target is None:
                args, named = tree_map(_without_values, (args, named))
        return func(*args, **named)


class OffDevice(TorchFunctionMode):
    """Make on the meta device what asks for a GPU by name."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Run a function of PyTorch, a constructor off the GPU."""
        named = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0].to("meta")
        if func in _device_constructors() and named.get("device") is not None and torch.device(named["device"]).type == "cuda":
            named["device"] = "meta"
        return func(*args, **named)


class UnreadWeights(TorchFunctionMode):
    """Answer what is asked of weights that have no values: checks whether something is amiss with them find nothing.

    A number that is read is 1; it can enter other values, which nobody reads, and no size.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> object:
        """Run a function of PyTorch, unless it reads one value of a tensor that has none."""
        answer = _ANSWERS.get(getattr(func, "__name__", ""))
        return answer(args[0]) if answer is not None and args[0].is_meta else func(*args, **(kwargs or {}))


_ANSWERS: Mapping[str, Callable[[torch.Tensor], object]] = {
    "__bool__": lambda _weight: False,
    "item": lambda _weight: 1,
    "__float__": lambda _weight: 1.0,
    "__int__": lambda _weight: 1,
    "unique": lambda weight: weight.flatten()[:1],
}
"""What is asked of values, and the answer: all that could differ is alike."""


def _is_in_place(func: Callable[..., Any]) -> bool:
    name: str = getattr(func, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _without_values(value: object) -> object:
    return value.to("meta") if isinstance(value, torch.Tensor) else value
