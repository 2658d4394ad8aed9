"""Fold repeated layers: layers of equal structure need one trace and a count.

Equal structure means the same classes, scalar attributes, parameter shapes and element types, all the way down. A number that
merely counts the layer, and a name that contains that number, tell nothing and are left out.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    StateOf = Callable[[nn.Module], Mapping[str, object] | None]
    """Tells the attributes of a module that live outside `nn.Module`, such as an attention window; None where it has none."""


@contextmanager
def fold_layers(model: nn.Module, state_of: StateOf | None = None, *, first_apart: bool = True) -> Iterator[Mapping[str, int]]:
    """Run one layer of each kind in every `nn.ModuleList` of the model, for the length of the scope.

    The list keeps its length: a layer like an earlier one returns what that one returned in the same forward, instead of running.

    Args:
        model: The model. Its repeated layers get another `forward` of their own, which is taken away afterwards.
        state_of: What a module keeps outside `nn.Module`.
        first_apart: Whether the very first layer is a kind of its own: models may treat it differently (no residual to add yet).

    Yields:
        How many layers each layer that runs stands for, by its path.
    """
    counts: dict[str, int] = {}
    latest: dict[str, Any] = {}
    hooks: list[RemovableHandle] = []
    repeated: list[nn.Module] = []
    try:
        for path, kinds in layer_kinds(model, state_of, first_apart=first_apart).items():
            for first, *others in kinds:
                place = f"{path}.{first}"
                counts[place] = 1 + len(others)
                # What is kept is a result of the forward: a layer that only repetitions follow is not taken for unused.
                hooks.append(model.get_submodule(place).register_forward_hook(partial(_keep, latest, place)))
                for index in others:
                    layer = model.get_submodule(f"{path}.{index}")
                    layer.forward = partial(_recall, latest, place)
                    repeated.append(layer)
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
        for layer in repeated:
            del layer.forward


def _keep(latest: dict[str, Any], place: str, _layer: nn.Module, _arguments: object, output: object) -> None:
    latest[place] = output


def _recall(latest: dict[str, Any], place: str, *_arguments: object, **_named: object) -> object:
    return latest[place]


def layer_kinds(model: nn.Module, state_of: StateOf | None = None, *, first_apart: bool = True) -> dict[str, list[list[int]]]:
    """Return the kinds of layers in each outermost `nn.ModuleList`, as lists of layer numbers.

    The very first layer stands alone: models treat it differently (it has no residual to add yet).
    """
    from torch import nn

    found: dict[str, list[list[int]]] = {}
    for path, layers in model.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0 and not nested:
            found[path] = _kinds(layers, state_of, first_apart=first_apart)
    return found


def _kinds(layers: nn.ModuleList, state_of: StateOf | None, *, first_apart: bool) -> list[list[int]]:
    """Return the numbers of the layers of each kind, kinds in order of their first layer."""
    described = [dict(_describe(layer, "", index, state_of)) for index, layer in enumerate(layers)]
    counters = {
        key
        for key, value in described[0].items()
        if isinstance(value, int)
        and not isinstance(value, bool)
        and all(type(d.get(key)) is int and d[key] - value == index for index, d in enumerate(described))
    }
    kinds: dict[object, list[int]] = {}
    for index, facts in enumerate(described):
        key = tuple(sorted((k, repr(v)) for k, v in facts.items() if k not in counters))
        kinds.setdefault(key, []).append(index)
    if not first_apart:
        return list(kinds.values())
    first, *others = kinds.values()
    return sorted([first[:1], *([first[1:]] if first[1:] else []), *others])


def _describe(module: nn.Module, path: str, index: int, state_of: StateOf | None) -> Iterator[tuple[str, Any]]:
    """Yield each fact of a layer's structure with its place in the layer."""
    yield f"{path}:class", type(module)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield f"{path}:{name}", (tuple(tensor.shape), str(tensor.dtype))
    for name, value in {**vars(module), **((state_of(module) if state_of else None) or {})}.items():
        if not name.startswith("_") and _is_plain(value):
            yield f"{path}.{name}", _without_index(value, index) if type(value) is str else value
    for name, child in module.named_children():
        yield from _describe(child, f"{path}.{name}", index, state_of)


def _is_plain(value: object) -> bool:
    """Tell values that describe a module by themselves: scalars, element types, and tuples of such."""
    import torch

    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, Enum, type(None), torch.dtype))


def _without_index(text: str, index: int) -> str:
    """Return a name with the layer's number taken out where it stands alone: `layers.4.attn`, but not `fp8_e4m3`."""
    return re.sub(rf"(?<![0-9A-Za-z]){index}(?![0-9A-Za-z])", "#", text)
