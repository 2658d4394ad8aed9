"""What vLLM's methods of quantisation ask of their section in a configuration and of a device, read in its files unloaded.

A method is a class of vLLM's: the fields that its `from_config` takes without a default are needed, the capability that its
`get_min_capability` returns is the least, and a list beside it by a field's name in the plural has the values that there are.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_REGISTRY = "model_executor/layers/quantization/__init__.py"
_KERNELS = "model_executor/kernels/linear/__init__.py"
_MAPPING, _PLATFORM = "method_to_config", "PlatformEnum"
_CHECKED = ("activation_scheme", "quant_algo")
"""Fields whose values vLLM lists."""


@dataclass(frozen=True, slots=True)
class Method:
    """What a method of quantisation asks."""

    fields: tuple[tuple[str, ...], ...] = ()
    """Needed fields, each by the names that it may have."""
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values that there are, by field."""
    min_capability: int | None = None
    """The least compute capability, ten times the major number and the minor; None where none is told."""


@cache
def find_method(name: str) -> Method | None:
    """Return what a method asks; None where vLLM's files do not tell in the form that is read here."""
    if (registry := _parsed(_REGISTRY)) is None or (found := _class_of(registry, name)) is None:
        return None
    path, class_name = found
    if (module := _parsed(path)) is None:
        return None
    functions = {f.name: f for c in _bases(module, class_name) for f in reversed(c.body) if isinstance(f, ast.FunctionDef)}
    listed = {name: _strings(module, f"{name.upper()}S") for name in _CHECKED}
    values = {name: strings for name, strings in listed.items() if strings}
    capability = _returned(functions.get("get_min_capability"))
    return Method(tuple(_needed(functions.get("from_config"))), values, capability if isinstance(capability, int) else None)


@cache
def method_names() -> tuple[str, ...]:
    """Return the names of all methods; none where vLLM's files do not tell in the form that is read here."""
    return () if (registry := _parsed(_REGISTRY)) is None else _strings(registry, "QuantizationMethods")


@cache
def has_kernel(algorithm: str, platform: str) -> bool | None:
    """Tell whether vLLM has a kernel for linear layers of an algorithm on a platform, as `CPU`; None where no file tells."""
    module = _parsed(_KERNELS)
    for node in [] if module is None else module.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == f"_POSSIBLE_{algorithm.upper()}_KERNELS":
            keys = node.value.keys if isinstance(node.value, ast.Dict) else []
            return f"{_PLATFORM}.{platform}" in {ast.unparse(key) for key in keys if key is not None}
    return None


@cache
def _parsed(path: str) -> ast.Module | None:
    for folder in getattr(find_spec("vllm"), "submodule_search_locations", None) or ():
        if (file := Path(folder) / path).is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def _class_of(registry: ast.Module, name: str) -> tuple[str, str] | None:
    """Return the file and the name of a method's class."""
    names: dict[str, str] = {}
    files: dict[str, str] = {}
    for node in ast.walk(registry):
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == _MAPPING and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            names = {k.value: ast.unparse(v) for k, v in pairs if isinstance(k, ast.Constant) and isinstance(k.value, str)}
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            path = f"{_REGISTRY.rpartition('/')[0]}/{node.module.replace('.', '/')}.py"
            files |= {alias.asname or alias.name: path for alias in node.names}
    wanted = names.get(name)
    return (files[wanted], wanted) if wanted in files else None


def _bases(module: ast.Module, name: str) -> list[ast.ClassDef]:
    """Return a class and those of its bases that are in its file, the class last."""
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        return []
    own = classes[name]
    return [*(found for base in own.bases for found in _bases(module, ast.unparse(base))), own]


def _returned(function: ast.FunctionDef | None) -> object:
    """Return the constant that a function returns; None where it returns none."""
    nodes = [] if function is None else [node.value for node in function.body if isinstance(node, ast.Return)]
    return next((node.value for node in nodes if isinstance(node, ast.Constant)), None)


def _needed(function: ast.FunctionDef | None) -> Iterator[tuple[str, ...]]:
    """Yield the names of each field that is taken whatever else is there."""
    for node in [] if function is None else function.body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "cls.get_from_keys" and isinstance(call.args[1], ast.List):
            yield tuple(e.value for e in call.args[1].elts if isinstance(e, ast.Constant) and isinstance(e.value, str))


def _strings(module: ast.Module, name: str) -> tuple[str, ...]:
    """Return the strings of a list, tuple, dictionary or `Literal` that a module has by a name, those of others within it too."""
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                return tuple(_elements(module, node.value))
    return ()


def _elements(module: ast.Module, value: ast.expr) -> Iterator[str]:
    if isinstance(value, ast.Subscript):
        value = value.slice
    for element in value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", []):
        if isinstance(element, ast.Starred):
            yield from _strings(module, ast.unparse(element.value))
        elif isinstance(element, ast.Constant) and isinstance(element.value, str):
            yield element.value
