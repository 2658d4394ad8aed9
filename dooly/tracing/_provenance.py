"""Name the sizes of a model by the fields of its configuration, from a second, throw-away build.

Method: the configuration's integers are replaced by tracked ones (`TrackedInt`), and the model is built anew on the meta device.
Integer attributes of its modules then carry their expressions, and a function mode notes the size arguments of each tensor that
is made, so that the axes of parameters and buffers carry theirs. The traced model itself never sees a tracked integer. Two
fields of equal value stay two: a size has an expression only where the model's own code passed it on.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from dooly.errors import TraceError
from dooly.tracing._tracked import TrackedInt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    import sympy
    import torch
    from torch import nn

    Noted: TypeAlias = dict[int, tuple[torch.Tensor, tuple[sympy.Expr | None, ...]]]
    """Axis expressions by the address of a tensor's storage; the tensor is kept, so that no other takes its address."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """The sizes of a model that come from its configuration."""

    sizes: Mapping[str, sympy.Expr]
    """Expression over configuration fields, by path: `layers.0.self_attn.q_size`, `norm.weight.size(0)`."""
    values: Mapping[sympy.Symbol, int]
    """Value of each configuration field."""

    def of(self, path: str, value: int) -> sympy.Expr | None:
        """Return the expression of a size, or None where none is known or the traced model has another value there."""
        expr = self.sizes.get(path)
        if expr is None:
            return None
        # Only the fields it holds: handing `subs` the whole configuration takes as long as the rest of the pass.
        return expr if expr.subs({field: self.values[field] for field in expr.free_symbols}) == value else None

    def below(self, name: str) -> Provenance:
        """Return the sizes as a module sees them that has the model as its child `name`."""
        return Provenance({f"{name}.{path}": expr for path, expr in self.sizes.items()}, self.values)


NO_PROVENANCE = Provenance({}, {})
"""That nothing is known."""


class ConfigFields:
    """The tracked integers of a configuration, one symbol a field."""

    def __init__(self) -> None:
        self.values: dict[sympy.Symbol, int] = {}
        """Value of each symbol."""

    def track(self, name: str, value: object, owner: str = "") -> object:
        """Return a positive integer tracked under the name of its field; any other value as it is.

        Args:
            name: The field.
            value: What the field holds.
            owner: Name of the nested configuration that has the field; precedes the name where another has it too.
        """
        import sympy

        if not isinstance(value, int) or isinstance(value, (bool, TrackedInt)) or value < 1:
            return value
        symbol = sympy.Symbol(name, integer=True, positive=True)
        if symbol in self.values:
            symbol = sympy.Symbol(f"{owner}.{name}", integer=True, positive=True)
        self.values[symbol] = int(value)
        return TrackedInt(value, symbol)

    def track_config(self, config: object, owner: str = "", written: Mapping[str, Any] | None = None) -> None:
        """Replace the integer fields of a configuration object by tracked ones, in place; then those of nested ones.

        Args:
            config: The configuration; one of Transformers may have other names for fields than its file has.
            owner: Where it lies within an outer configuration.
            written: The file that it was read from; fields get the names that they have there.
        """
        written = written or {}
        aliases = {field: name for name, field in getattr(config, "attribute_map", {}).items() if name in written}
        nested = []
        for name, value in _fields(config).items():
            if is_config(value):
                nested.append((name, value))
            elif not name.startswith("_"):
                # Below the class's own __setattr__: configurations are frozen, or check types exactly.
                shown = name if name in written else aliases.get(name, name)
                object.__setattr__(config, name, self.track(shown, value, owner))
        for name, value in sorted(nested, key=lambda field: (field[0] != "text_config", field[0])):
            self.track_config(value, f"{owner}.{name}".lstrip("."), written.get(name))


def is_config(value: object) -> bool:
    """Tell a configuration object: a dataclass's instance, or a Transformers configuration."""
    return (is_dataclass(value) or hasattr(value, "model_type")) and not isinstance(value, type) and not _holds_tensors(value)


def _holds_tensors(value: object) -> bool:
    import torch

    return isinstance(value, (torch.Tensor, torch.nn.Module))


def _fields(config: object) -> dict[str, object]:
    if hasattr(config, "__dict__"):
        return dict(vars(config))
    return {f.name: getattr(config, f.name) for f in fields(config)}  # type: ignore[arg-type]


def name_sizes(build: Callable[[], nn.Module], tracked: ConfigFields) -> Provenance:
    """Return the configured sizes of the model that `build` makes from a tracked configuration.

    Raises:
        TraceError: `build` fails; its error is the cause.
    """
    with _noting_sizes() as noted:
        try:
            model = build()
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0]
            raise TraceError(f"building from tracked sizes fails: {type(error).__name__}: {reason}") from error
        sizes = {
            path: expr
            for prefix, module in model.named_modules(remove_duplicate=False)
            for path, expr in _sizes(prefix, module, noted)
        }
    return Provenance(sizes, tracked.values)


@contextmanager
def _noting_sizes() -> Iterator[Noted]:
    """Note the tracked size arguments of each tensor that is made in the scope."""
    import torch
    from torch.overrides import TorchFunctionMode

    noted: Noted = {}
    first_size: dict[Any, int] = {getattr(torch, name): 0 for name in ("empty", "zeros", "ones", "full", "rand", "randn")}
    first_size |= {getattr(torch.Tensor, f"new_{name}"): 1 for name in ("empty", "zeros", "ones", "full")}

    class NotingSizes(TorchFunctionMode):
        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's own
            result = func(*args, **(kwargs or {}))
            if func is torch.arange:
                sizes = _arange_size(*args)
            elif func in first_size:
                sizes = _size_arguments(args[first_size[func] :], kwargs or {})
            else:
                return result
            if any(isinstance(size, TrackedInt) for size in sizes):
                noted[_address(result)] = (result, tuple(size.expr if isinstance(size, TrackedInt) else None for size in sizes))
            return result

    with NotingSizes():
        yield noted


def _size_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[object]:
    """Return the sizes that a call gives: one by one, as one sequence, or by name."""
    if "size" in kwargs:
        args = (kwargs["size"],)
    return args[0] if args and isinstance(args[0], (tuple, list)) else args


def _arange_size(*args: Any) -> Sequence[object]:  # noqa: ANN401 - what the caller gave
    """Return the one size of `arange(end)` or `arange(start, end, step)` over integers."""
    if not 1 <= len(args) <= 3 or not all(isinstance(a, int) for a in args):  # noqa: PLR2004 - start, end and step
        return ()
    bounds = slice(*args)
    start, step = bounds.start or 0, bounds.step or 1
    return ((bounds.stop - start + step - 1) // step,) if step > 0 else ()


def _address(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata  # noqa: SLF001 - the storage's identity; its data pointer is null on the meta device
    return address


def _sizes(prefix: str, module: nn.Module, noted: Noted) -> Iterator[tuple[str, sympy.Expr]]:
    """Yield the path and the expression of each configured size of one module."""
    dot = f"{prefix}." if prefix else ""
    for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        made, exprs = noted.get(_address(tensor), (None, ()))
        # A parameter shares its storage with the tensor that it wraps; a transposed view of it does too, and has other axes.
        if made is not None and _layout(made) == _layout(tensor):
            yield from ((f"{dot}{name}.size({axis})", expr) for axis, expr in enumerate(exprs) if expr is not None)
    for name, value in vars(module).items():
        yield from _integers(f"{dot}{name}", value)
        if not name.startswith("_") and hasattr(value, "__dict__"):
            for inner, number in vars(value).items():
                yield from _integers(f"{dot}{name}.{inner}", number)


def _integers(path: str, value: object) -> Iterator[tuple[str, sympy.Expr]]:
    """Yield an attribute that is a tracked integer, or the tracked items of one that is a tuple or list."""
    if isinstance(value, TrackedInt):
        yield path, value.expr
    elif isinstance(value, (tuple, list)):
        yield from ((f"{path}[{i}]", item.expr) for i, item in enumerate(value) if isinstance(item, TrackedInt))


def _layout(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
