"""Fold repeated layers: layers of equal structure need one trace and a count.

Equal structure means the same classes, scalar attributes, parameter shapes and element types, all the way down. A number that
merely counts the layer, and a name that contains that number, tell nothing and are left out.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from enum import Enum
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

_OF_EVERY_MODULE = frozenset({
    "training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "_is_full_backward_hook",
    "_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
})  # fmt: skip
"""Attributes that PyTorch gives every module, beside its parameters and children, which are described by themselves."""

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
    from torch import nn

    counts: dict[str, int] = {}
    latest: dict[str, Any] = {}
    hooks: list[RemovableHandle] = []
    repeated: list[nn.Module] = []
    try:
        kinds_of = layer_kinds(model, state_of, first_apart=first_apart)
        folded: dict[int, int] = {}
        # Lists may share layers, as parts of a whole: the longest one folds them, the others go by its counts.
        for path, kinds in sorted(kinds_of.items(), key=lambda item: -sum(map(len, item[1]))):
            layers = model.get_submodule(path)
            assert isinstance(layers, nn.ModuleList)
            counts |= {f"{path}.{i}": folded[id(layer)] for i, layer in enumerate(layers) if id(layer) in folded}
            if any(id(layer) in folded for layer in layers):
                continue
            kept = {id(layers[first]) for first, *_ in kinds}
            for first, *others in kinds:
                place = f"{path}.{first}"
                # A module that the list holds twice runs each time, under the path of its first place.
                followers = [layers[index] for index in others if id(layers[index]) not in kept]
                counts[place] = folded[id(layers[first])] = 1 + len(followers)
                # What is kept is a result of the forward: a layer that only repetitions follow is not taken for unused.
                hooks.append(model.get_submodule(place).register_forward_hook(partial(keep_output, latest, place)))
                for layer in dict.fromkeys(followers):
                    layer.forward = partial(recall_output, latest, place)
                    repeated.append(layer)
                    folded[id(layer)] = 1
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
        for layer in repeated:
            del layer.forward


@contextmanager
def fold_stacks(model: nn.Module) -> Iterator[Mapping[str, int]]:
    """Fold the layers of PyTorch's own stacks, which run them one after the other and treat them alike, as `fold_layers` does."""
    from torch import nn

    counts: dict[str, int] = {}
    with ExitStack() as scope:
        for path, stack in model.named_modules():
            if isinstance(stack, (nn.TransformerEncoder, nn.TransformerDecoder)):
                folded = scope.enter_context(fold_layers(stack, first_apart=False))
                counts |= {f"{path}.{place}".lstrip("."): count for place, count in folded.items()}
        yield counts


def keep_output(latest: dict[str, Any], place: str, _layer: nn.Module, _arguments: object, output: object) -> None:
    """Keep what the layer at a place returned; a forward hook."""
    latest[place] = output


def recall_output(latest: dict[str, Any], place: str, *_arguments: object, **_named: object) -> object:
    """Return what the layer at a place returned, in place of running."""
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
    counters = {key for key in dict.fromkeys(chain.from_iterable(described)) if _counts(key, described)}
    kinds: dict[object, list[int]] = {}
    for index, facts in enumerate(described):
        key = tuple(sorted((k, repr(v)) for k, v in facts.items() if k not in counters))
        kinds.setdefault(key, []).append(index)
    if not first_apart:
        return list(kinds.values())
    first, *others = kinds.values()
    return sorted([first[:1], *([first[1:]] if first[1:] else []), *others])


def _counts(key: str, described: list[dict[str, Any]]) -> bool:
    """Tell a number that counts the layers, in all layers of which it is a fact: kinds that alternate have facts of their own."""
    numbers = [(index, facts[key]) for index, facts in enumerate(described) if key in facts]
    return all(type(number) is int for _, number in numbers) and len({number - index for index, number in numbers}) == 1


def _describe(module: nn.Module, path: str, index: int, state_of: StateOf | None) -> Iterator[tuple[str, Any]]:
    """Yield each fact of a layer's structure with its place in the layer."""
    yield f"{path}:class", type(module)
    for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
        yield f"{path}:{name}", (tuple(tensor.shape), str(tensor.dtype))
    for name, value in {**vars(module), **((state_of(module) if state_of else None) or {})}.items():
        if name not in _OF_EVERY_MODULE:
            yield from _attribute(f"{path}.{name}", value, index)
    for name, child in module.named_children():
        yield from _describe(child, f"{path}.{name}", index, state_of)


def _attribute(path: str, value: object, index: int) -> Iterator[tuple[str, Any]]:
    """Yield what an attribute says of a layer: scalars by value, code by what it runs, collections by item, else the class."""
    import torch

    if isinstance(value, str):
        yield path, _without_index(value, index)
    elif isinstance(value, (bool, int, float, Enum, type(None), torch.dtype)):
        yield path, value
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            yield from _attribute(f"{path}[{place}]", item, index)
    elif isinstance(value, partial):
        yield from _attribute(f"{path}()", [value.func, *value.args, *value.keywords.values()], index)
    else:
        code = getattr(getattr(value, "__func__", value), "__code__", None)
        yield path, code or getattr(value, "__qualname__", type(value))


def _without_index(text: str, index: int) -> str:
    """Return a name without the layer's number where that is a part of it: `layers.4.attn`, not `fp8_e4m3` nor `(4, 8)`."""
    return re.sub(rf"(?<![^._/]){index}(?![^._/])", "#", text)
