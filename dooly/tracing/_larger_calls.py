"""Calls with larger sizes in place of sizes of one, which torch takes for constants: the batch of one that people start with.

A larger call stands for the given one where it runs the same operators in the same modules. Elsewhere a size of one has a
meaning: a vector that is added to each row, an image of one channel, a branch for a batch of one.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from passes.graph import module_calls
from passes.operators import is_tensor_code, is_view, operator_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from dooly.tracing._capture import Capture

    Call = tuple[tuple[Any, ...], Mapping[str, Any]]
    """Arguments by position and by name."""


def larger_calls(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Call]:
    """Yield a call with every size of one of its tensors larger, then one with the first dimensions' alone.

    The former not for a module that has sizes of one itself: it would take any size there, and may mean one.
    """
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]
    axes = {axis for tensor in tensors for axis, size in enumerate(tensor.shape) if size == 1}
    own = {size for tensor in (*module.parameters(), *module.buffers()) for size in tensor.shape}
    known = own.union(*(tensor.shape for tensor in tensors))
    larger = next(size for size in count(2) if size not in known)  # unlike any other, so that no two sizes agree by chance
    for num_axes in dict.fromkeys((1,) if 1 in own else (max(axes, default=0) + 1, 1)) if axes else ():
        yield tree_map(partial(_enlarged, size=larger, num_axes=num_axes), (args, dict(kwargs)))


def _enlarged(value: object, size: int, num_axes: int) -> object:
    """Return a tensor repeated along those of its first axes that are of size one."""
    if not isinstance(value, torch.Tensor) or 1 not in value.shape[:num_axes]:
        return value
    times = [size if n == 1 and axis < num_axes else 1 for axis, n in enumerate(value.shape)]
    return value.detach().repeat(times).requires_grad_(value.requires_grad)


def runs_the_same(one: Capture, other: Capture) -> bool:
    """Tell whether two captures of a module run the same operators in the same modules; copies and views do not count."""
    return _operators(one) == _operators(other)


def _operators(capture: Capture) -> list[tuple[str, str]]:
    return [
        (module_calls(node, "")[-1][1], name)
        for node in capture.graph.nodes
        if is_tensor_code(node) and not is_view(node) and (name := operator_name(node)) != "clone"
    ]
