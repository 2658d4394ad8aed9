"""Fold repeated layers where what runs spans two of them: each layer with the one before it.

A compiling engine runs the end of a layer and the begin of the next as one piece. So leading layers run until each kind of layer
has been seen behind each kind that it follows, and the last of them is of the kind that the model ends with.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from dooly.tracing._fold import keep_output, layer_kinds, recall_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from dooly.tracing._fold import StateOf


def followed_kinds(model: nn.Module, state_of: StateOf | None = None) -> dict[str, list[list[int]]]:
    """Return the numbers of the layers of one kind behind one kind, in each outermost `nn.ModuleList`, in order of the first."""
    found: dict[str, list[list[int]]] = {}
    for path, kinds in layer_kinds(model, state_of).items():
        kind = _kind_by_layer(kinds)
        groups: dict[tuple[int | None, int], list[int]] = {}
        for index in sorted(kind):
            groups.setdefault((kind.get(index - 1), kind[index]), []).append(index)
        found[path] = list(groups.values())
    return found


@contextmanager
def fold_layers_in_order(model: nn.Module, state_of: StateOf | None = None) -> Iterator[Mapping[str, int]]:
    """Run no more leading layers of each `nn.ModuleList` than show each kind behind each that it follows, within the scope.

    A later layer returns what the last of them returned.

    Args:
        model: The model. Its later layers get another `forward` of their own, which is taken away afterwards.
        state_of: What a module keeps outside `nn.Module`.

    Yields:
        How many layers each layer that runs stands for, by its path: those of its kind behind the kind before it.
    """
    counts: dict[str, int] = {}
    latest: dict[str, Any] = {}
    hooks: list[RemovableHandle] = []
    folded: list[nn.Module] = []
    kinds = layer_kinds(model, state_of)
    try:
        for path, groups in followed_kinds(model, state_of).items():
            number = _num_leading(groups, _kind_by_layer(kinds[path]))
            for first, *others in groups:
                running = [index for index in others if index < number]
                counts[f"{path}.{first}"] = 1 + len(others) - len(running)
                counts |= {f"{path}.{index}": 1 for index in running}
            later = list(model.get_submodule(path).children())[number:]
            if not later:  # what nobody recalls is not kept: it would be one more result of the forward
                continue
            place = f"{path}.{number - 1}"
            hooks.append(model.get_submodule(place).register_forward_hook(partial(keep_output, latest, place)))
            folded += later
            for layer in later:
                layer.forward = partial(recall_output, latest, place)
            later[-1].forward = partial(_recall_last, latest, place)  # nor is it kept beyond the last layer
        yield counts
    finally:
        for hook in hooks:
            hook.remove()
        for layer in folded:
            del layer.forward


def _recall_last(latest: dict[str, Any], place: str, *_arguments: object, **_named: object) -> object:
    return latest.pop(place)


def _kind_by_layer(kinds: list[list[int]]) -> dict[int, int]:
    return {index: kind for kind, members in enumerate(kinds) for index in members}


def _num_leading(groups: list[list[int]], kind: Mapping[int, int]) -> int:
    """Return how many leading layers show every group, and end with the kind that the model ends with."""
    last = kind[max(kind)]
    return next(index + 1 for index in range(max(first for first, *_ in groups), len(kind)) if kind[index] == last)
