"""Triton kernels of an engine as operators: a launch leaves its mark in the graph, what it reads and writes, and runs nothing.

Triton compiles kernels for the device that it finds. Where there is none, its decorators are replaced before the engine's modules
use them. What a kernel writes shows in its source: pointers that reach a store or an atomic operation.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache, wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_LOADS = frozenset({"load"})
_WRITES = "atomic_", "store"
_OUTPUTS = "output", "attn_out"
"""How the engine's own stateful functions call what they write to."""


class Kernel:
    """A Triton kernel, which is launched as `kernel[grid](...)`."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.name = function.__name__
        self.parameters = tuple(inspect.signature(function).parameters)
        self.written = _written(function, self.parameters)

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        return self.launch

    def launch(self, *args: object, **named: object) -> None:
        """Leave the mark of a launch; each choice that is compiled in, true or false, is part of the kernel's name."""
        import torch

        arguments = dict(zip(self.parameters, args, strict=False)) | named
        read: list[torch.Tensor] = []
        written: list[torch.Tensor] = []
        chosen: list[str] = []
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                (written if name in self.written else read).append(value)
            elif isinstance(value, (bool, str)):
                chosen.append(f"{name}={value}")
        torch.ops.dooly.launch(f"{self.name}({', '.join(chosen)})", read, written)


def show_launches() -> None:
    """Have Triton's decorators make kernels whose launches show in a graph, in this process from now on."""
    _define_launch()
    if find_spec("triton") is None:
        return
    import triton  # type: ignore[import-untyped]

    triton.jit = lambda function=None, **_options: Kernel if function is None else Kernel(function)
    triton.autotune = triton.heuristics = lambda *_args, **_named: lambda kernel: kernel


def _marked(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that leaves the mark of code that the engine never captures: it writes to an output that it is given."""
    parameters = tuple(inspect.signature(function).parameters)

    @wraps(function)
    def mark(*args: object, **named: object) -> None:
        import torch

        arguments = dict(zip(parameters, args, strict=False)) | named
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        written = [value for name, value in tensors.items() if name.endswith(_OUTPUTS)]
        read = [value for name, value in tensors.items() if not name.endswith(_OUTPUTS)]
        torch.ops.dooly.launch(function.__name__, read, written)

    return mark


def show_uncaptured_code() -> None:
    """Have the functions that the engine keeps out of CUDA graphs show in a graph as launches, from now on."""
    from vllm.compilation import breakable_cudagraph

    breakable_cudagraph.eager_break_during_capture = _marked


@cache
def _define_launch() -> Any:  # noqa: ANN401 - a torch library, which defines its operators as long as it lives
    import torch

    library = torch.library.Library("dooly", "FRAGMENT")
    library.define("launch(str kernel, Tensor[] read, Tensor(a!)[] written) -> ()")
    torch.library.register_fake("dooly::launch", lambda *_: None, lib=library)
    return library


def _written(function: Callable[..., object], parameters: tuple[str, ...]) -> frozenset[str]:
    """Return the parameters that a kernel's source writes through; all of them where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):
        return frozenset(parameters)
    behind = {name: {name} for name in parameters}
    written: set[str] = set()
    # Twice: in a loop, a pointer may be used above the line that moves it.
    for node in [*ast.walk(tree), *ast.walk(tree)]:
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)):
                behind.setdefault(name, set()).update(_pointers(node.value, behind))
        elif isinstance(node, ast.Call):
            written |= _written_by_call(node, behind, function)
    return frozenset(written)


def _written_by_call(call: ast.Call, behind: dict[str, set[str]], function: Callable[..., Any]) -> set[str]:
    """Return the parameters that one call writes through: a store, or a kernel that is called as a function."""
    if isinstance(call.func, ast.Attribute):
        is_write = call.func.attr.startswith(_WRITES)
        # `tl.store(pointer, value)`, or `descriptor.store(offsets, value)`
        return _pointers(call.func.value, behind) | _pointers(call.args[0], behind) if is_write and call.args else set()
    called = function.__globals__.get(call.func.id) if isinstance(call.func, ast.Name) else None
    if not isinstance(called, Kernel):
        return set()
    given = [*zip(called.parameters, call.args, strict=False), *((k.arg, k.value) for k in call.keywords)]
    return set().union(*(_pointers(value, behind) for name, value in given if name in called.written))


def _pointers(node: ast.AST, behind: dict[str, set[str]]) -> set[str]:
    """Return the parameters behind an expression, less those whose values it loads."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _LOADS:
        return set()
    if isinstance(node, ast.Name):
        return behind.get(node.id, set())
    return set().union(*(_pointers(child, behind) for child in ast.iter_child_nodes(node)))
