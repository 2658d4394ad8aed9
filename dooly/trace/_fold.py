"""Fold repeated layers: layers of equal structure need one trace and a count.

Equal structure means the same classes, scalar attributes, parameter shapes and element types, all the way down. A number that
merely counts the layer, and a name that contains that number, tell nothing and are left out.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

    StateOf = Callable[[nn.Module], Mapping[str, object] | None]
    """Tells the attributes of a module that live outside `nn.Module`, such as an attention window; None where it has none."""


@dataclass(frozen=True, slots=True)
class FoldedLayers:
    """A list of layers in which each kind stands once."""

    counts: Mapping[str, int]
    """How many layers each kept layer stands for, by its path within the folded model."""
    originals: Mapping[str, str]
    """The kept layer's path in the unfolded model, by its path within the folded model."""


@contextmanager
def fold_layers(model: nn.Module, state_of: StateOf | None = None) -> Iterator[FoldedLayers]:
    """Keep one layer of each kind in every `nn.ModuleList` of the model, for the length of the scope.

    Args:
        model: The model; its module lists are swapped in place and put back.
        state_of: What a module keeps outside `nn.Module`.
    """
    from torch import nn

    counts: dict[str, int] = {}
    originals: dict[str, str] = {}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, kinds in layer_kinds(model, state_of).items():
            owner_path, _, name = path.rpartition(".")
            owner = model.get_submodule(owner_path)
            layers = model.get_submodule(path)
            assert isinstance(layers, nn.ModuleList)
            if len(kinds) == len(layers):
                continue
            swapped.append((owner, name, layers))
            setattr(owner, name, nn.ModuleList([layers[members[0]] for members in kinds]))
            for place, members in enumerate(kinds):
                counts[f"{path}.{place}"] = len(members)
                originals[f"{path}.{place}"] = f"{path}.{members[0]}"
        yield FoldedLayers(counts, originals)
    finally:
        for owner, name, layers in swapped:
            setattr(owner, name, layers)


def layer_kinds(model: nn.Module, state_of: StateOf | None = None) -> dict[str, list[list[int]]]:
    """Return the kinds of layers in each outermost `nn.ModuleList`, as lists of layer numbers.

    The very first layer stands alone: models treat it differently (it has no residual to add yet).
    """
    from torch import nn

    found: dict[str, list[list[int]]] = {}
    for path, layers in model.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(layers, nn.ModuleList) and len(layers) > 0 and not nested:
            found[path] = _kinds(layers, state_of)
    return found


def _kinds(layers: nn.ModuleList, state_of: StateOf | None) -> list[list[int]]:
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
