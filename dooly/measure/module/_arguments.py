"""Arguments of a module's forward at other request dimensions than those it was traced with."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import sympy

from dooly.errors import MeasurementError
from dooly.measure.module._subgraph import evaluate, is_size
from passes.graph import shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn
    from torch.fx import Node

    from dooly.tracing import Traced
    from passes.graph import CapturedGraph
    from passes.origins import Origins

    Symbols = Mapping[sympy.Symbol, sympy.Integer]


def symbol_values(captured: CapturedGraph, origins: Origins, sizes: Mapping[str, int]) -> dict[sympy.Symbol, sympy.Integer]:
    """Return the value of each symbol of a captured graph; a request dimension that `sizes` lacks keeps the traced value."""
    named = {str(symbol): symbol for symbol in origins.requests}
    told = {named[name]: value for name, value in sizes.items() if name in named}
    values = {}
    for symbol, source in captured.sources.items():
        value = origins.concrete(symbol).subs(told)
        values[symbol] = value if value.is_Integer else sympy.Integer(source.value)
    return values


def arguments_at(traced: Traced, captured: CapturedGraph, symbols: Symbols) -> inspect.BoundArguments:
    """Return forward arguments of the sizes that `symbols` gives, on the example's device and of its element types.

    The elements are drawn from the example's own, so indices stay in range, masks stay masks, and tokens stay tokens.

    Raises:
        MeasurementError: The graph reads a tensor that is no argument of forward.
    """
    import torch
    from torch.utils._pytree import keystr, tree_map_with_path

    args, kwargs = traced.example
    bound = inspect.signature(traced.module.forward).bind(*args, **kwargs)
    tensors = {text: node for node, text in _placeholders(captured) if not _of_module(text, captured)}
    numbers = {source.text: symbols[symbol] for symbol, source in captured.sources.items()}
    generator = torch.Generator().manual_seed(0)
    found = set()

    def at(path: Any, leaf: Any) -> Any:  # noqa: ANN401 - torch's key path, and a leaf of any type
        text = f"L{keystr(path)}"
        if text in tensors and isinstance(leaf, torch.Tensor):
            found.add(text)
            shape = [int(evaluate(size, symbols)) for size in tensors[text].meta["val"].shape]
            return _drawn(leaf, shape, generator)
        if isinstance(leaf, torch.Tensor):  # whose elements are not read, only its sizes
            shape = [int(numbers.get(f"{text}.size()[{axis}]", size)) for axis, size in enumerate(leaf.shape)]
            return leaf if shape == list(leaf.shape) else _drawn(leaf, shape, generator)
        return int(numbers[text]) if text in numbers else leaf

    bound.arguments.update(tree_map_with_path(at, dict(bound.arguments)))
    if unknown := sorted(tensors.keys() - found):
        raise MeasurementError(
            f"{type(traced.module).__name__}: forward reads {unknown[0]}, which is neither its argument nor a tensor of the "
            "module; pass it to forward, or register it as a buffer"
        )
    return bound


def graph_values(captured: CapturedGraph, symbols: Symbols) -> dict[Node, object]:
    """Return the values of the graph's sizes and constants."""
    values: dict[Node, object] = {}
    owner: Any = captured.graph.owning_module
    for node in captured.graph.nodes:
        if is_size(node):
            values[node] = evaluate(node.meta["val"], symbols)
        elif node.op == "get_attr":
            values[node] = getattr(owner, str(node.target))
    return values


def tensor_values(captured: CapturedGraph, module: nn.Module, bound: inspect.BoundArguments) -> dict[Node, torch.Tensor]:
    """Return the tensors of the graph's placeholders: the module's parameters and buffers, and the arguments."""
    scope = {"L": {**bound.arguments, captured.module_argument: module}}
    # Dynamo names a source by the Python expression that reads it.
    return {node: eval(text, scope) for node, text in _placeholders(captured)}  # noqa: S307


def _placeholders(captured: CapturedGraph) -> list[tuple[Node, str]]:
    tensors = (node for node in captured.graph.nodes if node.op == "placeholder" and shape_of(node) is not None)
    return [(node, captured.placeholders[node.name]) for node in tensors]


def _of_module(text: str, captured: CapturedGraph) -> bool:
    return text.startswith(f"L['{captured.module_argument}']")


def _drawn(example: torch.Tensor, shape: list[int], generator: torch.Generator) -> torch.Tensor:
    """Return a tensor of a shape whose elements are drawn from an example's."""
    import torch

    if example.numel() == 0:
        return example.new_zeros(shape)
    places = torch.randint(example.numel(), (torch.Size(shape).numel(),), generator=generator)
    return example.detach().flatten()[places.to(example.device)].view(shape)
