"""`Traced`: a module that computes what it always did, and knows its operations once it has run. Loads torch."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from dooly.errors import InvalidInputError, TraceError
from dooly.tracing._call_kinds import describe_call, find_ones
from dooly.tracing._constructor import instance_sizes
from dooly.tracing._fold import fold_layers, fold_stacks
from dooly.tracing._forward import capture_forward
from dooly.tracing._larger_calls import larger_calls, runs_the_same
from dooly.tracing._model import TracedModel
from dooly.tracing._request_dims import check_names, check_origins
from dooly.tracing._table import tabulate
from passes import name_origins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from inspect import BoundArguments

    from dooly.tracing._capture import Capture
    from dooly.tracing._larger_calls import Call
    from dooly.tracing._provenance import Provenance
    from dooly.tracing._request_dims import RequestDims
    from passes.graph import CapturedGraph


@dataclass
class CapturedCall:
    """What one kind of call runs."""

    name: str
    """The call's arguments, as `x: float32[_, _]`, and the modes it ran in."""
    capture: Capture
    """Its graph."""
    counts: Mapping[str, int]
    """How many layers each traced layer stands for, by its path."""
    request_dims: RequestDims
    """Names of the request dimensions."""
    provenance: Callable[[], Provenance]
    """Tells which of the module's sizes its configuration sets."""
    module: str
    """Class name of the module."""
    code: str
    """Digest of the modules within the module, by class, and of the graph: views and wrappers count, names and sizes do not."""
    training: Mapping[str, bool]
    """Which modules were in training mode, by path."""
    autocast: Mapping[str, torch.dtype]
    """Element type of autocast, by the device types for which it was enabled."""

    def describe(self) -> CapturedGraph:
        """Return its graph with the names of what it knows."""
        return self.capture.describe(self.request_dims, provenance=self.provenance())

    @cached_property
    def table(self) -> TracedModel:
        """Its operations."""
        versions = {"engine": "torch", "engine_version": torch.__version__, "torch_version": torch.__version__}
        operations = tabulate(self.describe(), stage="decoder", counts=self.counts, model_class=self.module)
        return TracedModel(self.module, {**versions, "code": self.code}, operations)


class Traced(nn.Module):
    """A module that computes what it always did, gradients included, and knows the operations of its inference once it has run.

    It stands in for the module: attributes, parameters, buffers, children, mode and `state_dict` are the module's own, under the
    same names. Each new kind of call is traced first, on stand-ins without data; then the module itself runs,
    once also where it could not be traced, so that an error of its own is told as it is.
    """

    if TYPE_CHECKING:
        module: nn.Module
        request_dims: RequestDims
        fold_layers: bool
        _calls: dict[Any, CapturedCall]
        _example: Call
        _provenance: Callable[[], Provenance]

    def __init__(
        self,
        module: nn.Module,
        request_dims: RequestDims | None = None,
        provenance: Callable[[], Provenance] | None = None,
        *,
        fold_layers: bool = False,
    ) -> None:
        super().__init__()
        shared = {name: module.__dict__[name] for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")}
        own = {"module": module, "request_dims": dict(request_dims or {}), "fold_layers": fold_layers}
        own |= {"_calls": {}, "_example": ((), {})}
        self.__dict__["_provenance"] = cache(provenance or partial(instance_sizes, module))
        self.__dict__.update(shared | own)
        del self.__dict__["training"]

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the module's own signature
        """Run the module; trace it first where this kind of call is new.

        Raises:
            TraceError: The module's code cannot be captured in one graph; the message names its line. Or the call, once traced,
                cannot run on the meta device.
            InvalidInputError: `request_dims` does not fit the call.
        """
        if torch.compiler.is_compiling():  # part of a larger traced or compiled module
            return self.module(*args, **kwargs)
        call = signature(self.module.forward).bind(*args, **kwargs)
        kind = (self._name(call), find_ones(call.arguments))
        if kind not in self._calls:
            try:
                traced, example = self._trace(call, args, kwargs)
            except TraceError:
                self.module(*args, **kwargs)  # an error of the module's own is told as it is
                raise
            self._calls[kind] = traced
            if self.most_general is traced:  # the others' arguments are the caller's to free
                self._example = example
        try:
            return self.module(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if "meta tensor" not in str(error):
                raise
            raise TraceError(
                f"{type(self.module).__name__}: traced, see `.traced`; but the call itself reads values, which the meta device "
                "does not have: catch this error, or call with a module and inputs on the CPU"
            ) from error

    def _trace(self, call: BoundArguments, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[CapturedCall, Call]:
        """Return what a call runs, and the call that shows it: a larger one, where sizes of one hide what the request sets."""
        check_names(self.request_dims, call)
        with ExitStack() as scope:
            scope.enter_context(_unwrapped(self.module))
            counts = scope.enter_context((fold_layers if self.fold_layers else fold_stacks)(self.module))
            capture, example = self._capture(args, kwargs), (args, kwargs)
            for larger in larger_calls(self.module, args, kwargs):
                with suppress(TraceError, InvalidInputError):
                    general = self._capture(*larger)
                    if runs_the_same(capture, general):
                        capture, example = general, larger
                        break
        traced = CapturedCall(
            self._name(call),
            capture,
            dict(counts),
            self.request_dims,
            self._provenance,
            type(self.module).__name__,
            _digest_code(self.module, capture),
            {path: module.training for path, module in self.module.named_modules()},
            _autocast(),
        )
        return traced, example

    def _capture(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Capture:
        capture = capture_forward(self.module, args, kwargs)
        if self.request_dims:
            check_origins(self.request_dims, capture, name_origins(capture.describe(provenance=self._provenance())))
        return capture

    def _name(self, call: BoundArguments) -> str:
        autocast = [f"autocast {dtype}" for dtype in _autocast().values()]
        return "; ".join([describe_call(call), *(["training"] if self.module.training else []), *autocast])

    @property
    def most_general(self) -> CapturedCall:
        """The call with the most symbolic sizes; of several, the first.

        Raises:
            TraceError: The module has not run yet.
        """
        if not self._calls:
            raise TraceError(f"{type(self.module).__name__}: not traced yet; call it once with an example input")
        return max(self._calls.values(), key=lambda call: len(call.capture.sources))

    @property
    def captured(self) -> CapturedGraph:
        """The graph of the most general call, which measuring runs piece by piece.

        Raises:
            TraceError: The module has not run yet.
        """
        return self.most_general.describe()

    @property
    def example(self) -> Call:
        """Arguments, by position and by name, of the call that made `captured`; sizes of one may be larger than they were given.

        Raises:
            TraceError: The module has not run yet.
        """
        _ = self.most_general
        return self._example

    @property
    def traced(self) -> TracedModel:
        """The operations of the most general call.

        Raises:
            TraceError: The module has not run yet.
            PassError: A named request dimension was a constant in every call.
        """
        return self.most_general.table

    @property
    def tables(self) -> dict[str, TracedModel]:
        """The operations of each kind of call, by its arguments as `x: float32[_, _], mask: bool[_]; training`.

        Raises:
            PassError: A named request dimension was a constant in all calls of a kind.
        """
        names = dict.fromkeys(call.name for call in self._calls.values())
        calls = {n: [c for c in self._calls.values() if c.name == n] for n in names}
        return {n: max(found, key=lambda call: len(call.capture.sources)).table for n, found in calls.items()}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the module's own
        return getattr(self.__dict__["module"], name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__:
            object.__setattr__(self, name, value)
        else:
            setattr(self.module, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self.module, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.module, self.request_dims, self.__dict__["_provenance"].__wrapped__, self.fold_layers)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - as nn.Module has it
        """Set the module's mode."""
        self.module.train(mode)
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - as nn.Module has it
        self.module._apply(fn, recurse)  # noqa: SLF001 - what to(), half() and cuda() go through
        return self

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Call `fn` on the module and all within it."""
        self.module.apply(fn)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as nn.Module has it
        """Load the module's own state."""
        return self.module.load_state_dict(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # noqa: ANN401 - as nn.Module has it
        """Return the module's own state."""
        state: dict[str, Any] = self.module.state_dict(*args, **kwargs)
        return state

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401 - as nn.Module has it
        self.module._load_from_state_dict(*args)  # noqa: SLF001 - what load_state_dict of a larger module calls

    def __repr__(self) -> str:
        return f"Traced({self.module!r})"


@contextmanager
def _unwrapped(module: nn.Module) -> Iterator[None]:
    """Put the modules themselves in the place of traced ones within a module, so that paths are the module's own."""
    places = [(owner._modules, n, c) for owner in module.modules() for n, c in owner._modules.items() if isinstance(c, Traced)]  # noqa: SLF001 - holds children by name
    for children, name, child in places:
        children[name] = child.module
    try:
        yield
    finally:
        for children, name, child in places:
            children[name] = child


def _autocast() -> dict[str, torch.dtype]:
    return {device: torch.get_autocast_dtype(device) for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)}


def _digest_code(module: nn.Module, capture: Capture) -> str:
    """Return a digest of what a forward runs beside its operators' sizes: the nested modules, and the graph with its views."""
    modules = [f"{path.count('.')} {type(m).__module__}.{type(m).__qualname__}" for path, m in module.named_modules()]
    return hashlib.sha256("\n".join([*modules, str(capture.graph)]).encode()).hexdigest()[:32]


def _restore(
    cls: type[Traced],
    module: nn.Module,
    request_dims: RequestDims,
    provenance: Callable[[], Provenance],
    fold: bool,  # noqa: FBT001 - for pickle
) -> Traced:
    return cls(module, request_dims, provenance, fold_layers=fold)
