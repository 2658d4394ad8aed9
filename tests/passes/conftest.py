"""Capture real modules, and print what the passes found as short text."""

from __future__ import annotations

from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING

import pytest

from passes import CapturedGraph, Dim, Operation, Origin, TensorSpec, analyse, canonicalize, name_origins, split_operations
from passes.operators import operator_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import networkx as nx
    import torch
    from torch import nn

    Capture = Callable[..., CapturedGraph]


@pytest.fixture(scope="session")
def capture() -> Capture:
    """Return a function that captures `module(*inputs)` with every size a symbol."""
    import torch

    from dooly.tracing import dooly_backend, tracing

    def run(
        module: nn.Module,
        *inputs: object,
        request_dims: Mapping[str, tuple[str | None, ...]] | None = None,
        stateful: Mapping[str, Mapping[str, bool | int | float | str | None]] | None = None,
        held: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> CapturedGraph:
        with tracing() as captures:
            torch.compile(module, backend=partial(dooly_backend), fullgraph=True)(*inputs)
        (captured,) = captures
        return captured.describe(request_dims, stateful, held)

    return run


@pytest.fixture(scope="session")
def canonical(capture: Capture) -> Callable[..., nx.DiGraph[int]]:
    """Return a function that gives the canonical graph of a module that is one operation."""

    def run(module: nn.Module, *inputs: object, **told: object) -> nx.DiGraph[int]:
        captured = capture(module, *inputs, **told)
        origins = name_origins(captured)
        (operation,) = split_operations(captured, origins)
        return canonicalize(operation, origins)

    return run


@pytest.fixture(scope="session")
def signatures(capture: Capture) -> Callable[..., dict[str, list[str]]]:
    """Return a function that gives the signatures of a module's operations, by module path."""

    def run(module: nn.Module, *inputs: object, **told: object) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for operation in analyse(capture(module, *inputs, **told)).operations:
            found.setdefault(operation.operation.module, []).append(operation.signature)
        return found

    return run


@pytest.fixture(scope="session")
def table(capture: Capture) -> Callable[..., str]:
    """Return a function that prints a module's operations: path, class and operators, then a line for each tensor.

    A parameter has a star; a configured dimension shows its value (`hidden=8`), a mixed one a tilde.
    """

    def run(module: nn.Module, *inputs: object, **told: object) -> str:
        captured = capture(module, *inputs, **told)
        return "\n".join(_text(op) for op in split_operations(captured, name_origins(captured)))

    return run


def _text(operation: Operation) -> str:
    operators = " ".join(operator_name(node) for node in operation.nodes)
    lines = wrap(f"{operation.module or '.'} {operation.module_class or '-'}: {operators}", 100, subsequent_indent="        ")
    lines += [f"    in  {_tensor(tensor)}" for tensor in operation.inputs]
    lines += [f"    out {_tensor(tensor)}" for tensor in operation.outputs]
    return "\n".join(lines)


def _tensor(tensor: TensorSpec) -> str:
    dtype = "" if tensor.dtype == "float32" else tensor.dtype
    return f"{'*' if tensor.is_parameter else ''}{dtype}[{', '.join(map(_dim, tensor.shape))}]"


def _dim(dim: Dim) -> str:
    if dim.origin is Origin.CONFIG:
        return f"{dim.expr}={dim.value}" if dim.expr.free_symbols else str(dim.expr)
    return f"~{dim.expr}" if dim.origin is Origin.MIXED else str(dim.expr)
