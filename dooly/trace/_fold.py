"""Fold repeated layers: layers of equal structure need one trace and a count.

Equal structure means the same classes, scalar attributes, parameter shapes and element types, all the way down. A number that
merely counts the layer, and a name that contains that number, tell nothing and are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class FoldedLayers:
    """A list of layers in which each kind stands once."""

    counts: Mapping[str, int]
    """How many layers each kept layer stands for, by its path within the folded model."""
    originals: Mapping[str, str]
    """The kept layer's path in the unfolded model, by its path within the folded model."""


@contextmanager
def fold_layers(
    model: nn.Module, state_of: Callable[[nn.Module], Mapping[str, object] | None] | None = None
) -> Iterator[FoldedLayers]:
    """Keep one layer of each kind in every `nn.ModuleList` of the model, for the length of the scope.

    Args:
        model: The model; its module lists are swapped in place and put back.
        state_of: Attributes of a module that live outside `nn.Module`, such as an attention window.
    """
    from torch import nn

    counts: dict[str, int] = {}
    originals: dict[str, str] = {}
    swapped: list[tuple[nn.Module, str, nn.Module]] = []
    lists = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    try:
        for path, layers in lists:
            kinds = _kinds(layers, state_of)
            if len(kinds) == len(layers):
                continue
            kinds.sort()
            owner_path, _, name = path.rpartition(".")
            owner = model.get_submodule(owner_path)
            swapped.append((owner, name, layers))
            owner._modules[name] = nn.ModuleList([layers[members[0]] for members in kinds])
            for place, members in enumerate(kinds):
                counts[f"{path}.{place}"] = len(members)
                originals[f"{path}.{place}"] = f"{path}.{members[0]}"
        yield FoldedLayers(counts, originals)
    finally:
        for owner, name, layers in swapped:
            owner._modules[name] = layers


def _kinds(layers: nn.ModuleList, state_of: Callable[[nn.Module], Mapping[str, object] | None] | None) -> list[list[int]]:
    """Return the indices of the layers of each kind, kinds in order of their first layer.

    The very first layer stands alone: models treat it differently (it has no residual to add yet).
    """
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
    return [first[:1], *([first[1:]] if first[1:] else []), *others]


def _describe(
    module: nn.Module, path: str, index: int, state_of: Callable[[nn.Module], Mapping[str, object] | None] | None
) -> Iterator[tuple[str, Any]]:
    """Yield each fact of a layer's structure with its place in the layer."""
    yield f"{path}:class", type(module)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield f"{path}:{name}", (tuple(tensor.shape), str(tensor.dtype))
    for name, value in {**vars(module), **((state_of(module) if state_of else None) or {})}.items():
        if not name.startswith("_") and isinstance(value, (bool, int, float, str, Enum, type(None))):
            yield f"{path}.{name}", _without_index(value, index) if type(value) is str else value
    for name, child in module.named_children():
        yield from _describe(child, f"{path}.{name}", index, state_of)


def _without_index(text: str, index: int) -> str:
    return re.sub(rf"(?<!\d){index}(?!\d)", "#", text)
