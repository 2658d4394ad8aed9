"""`dooly.trace`: trace any `nn.Module`, as a decorator on its class or as a wrapper around an instance."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial, wraps
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar, overload

from dooly.errors import InvalidInputError, TraceError
from dooly.trace._capture import dooly_backend, tracing
from dooly.trace._constructor import constructed_sizes, instance_sizes
from dooly.trace._model import TracedModel
from dooly.trace._table import tabulate

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from dooly.trace._capture import Capture
    from dooly.trace._provenance import Provenance
    from passes.graph import CapturedGraph

    Module = TypeVar("Module", bound=nn.Module)

RequestDims = Mapping[str, tuple[str | None, ...]]


class Traced:
    """A module that computes what it always did, without gradients, and knows its operations once it has run.

    Call it as the module itself. `traced` holds the operations of the most general graph that its calls made.
    """

    def __init__(
        self,
        module: nn.Module,
        request_dims: RequestDims | None = None,
        provenance: Callable[[], Provenance] | None = None,
    ) -> None:
        import torch

        self.module = module
        self._provenance = cache(provenance or partial(instance_sizes, module))
        self.request_dims = request_dims or {}
        # A backend of its own: torch hands equal modules the graph that it compiled first, and would capture nothing here.
        # Apart from other compilations, where torch can (2.13 does): else many traces use up the user's recompile limit.
        apart: dict[str, Any] = (
            {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
        )
        self._compiled = torch.compile(module, backend=partial(dooly_backend), fullgraph=True, **apart)
        self._capture: Capture | None = None
        self._traced: TracedModel | None = None
        self._example: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the module's own signature
        """Run the module; trace it where its graph is not known yet.

        Raises:
            TraceError: The module's code cannot be captured in one graph.
        """
        import torch

        try:
            with tracing() as captures:
                result = self._compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            msg = (
                f"{type(self.module).__name__}: torch.compile cannot capture its forward in one graph: {reason}; "
                "see `TORCH_LOGS=graph_breaks` for the line, and move that code out of forward"
            )
            raise TraceError(msg) from error
        for capture in captures:
            if self._capture is None or len(capture.sources) > len(self._capture.sources):
                self._capture, self._traced, self._example = capture, None, (args, kwargs)
        return result

    def _tabulate(self) -> TracedModel:
        import torch

        environment = {"engine": "torch", "engine_version": torch.__version__, "torch_version": torch.__version__}
        operations = tabulate(self.captured, stage="decoder")
        return TracedModel(type(self.module).__name__, environment, operations)

    @property
    def captured(self) -> CapturedGraph:
        """The most general graph that the calls made, which measuring runs piece by piece.

        Raises:
            TraceError: The module has not run yet.
        """
        if self._capture is None:
            raise TraceError(f"{type(self.module).__name__}: not traced yet; call it once with an example input")
        return self._capture.describe(self.request_dims, provenance=self._provenance())

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments, by position and by name, of the call that made `captured`."""
        return self._example

    @property
    def traced(self) -> TracedModel:
        """The operations of the module.

        Raises:
            TraceError: The module has not run yet.
            PassError: A named request dimension was a constant in every call.
        """
        if self._traced is None:
            self._traced = self._tabulate()
        return self._traced


@overload
def trace(model: type[Module], *, request_dims: RequestDims | None = None) -> Callable[..., Traced]: ...


@overload
def trace(model: nn.Module, *, request_dims: RequestDims | None = None) -> Traced: ...


@overload
def trace(model: None = None, *, request_dims: RequestDims | None = None) -> Callable[[Any], Any]: ...


def trace(model: Any = None, *, request_dims: RequestDims | None = None) -> Any:
    """Trace an `nn.Module`: label every dimension of every operation by its origin.

    Works on an instance (`dooly.trace(model)`), as a decorator of a class (`@dooly.trace`, whose instances are then traced), and
    with arguments (`@dooly.trace(request_dims={"x": ("batch", "seq")})`). Tracing happens on the first call.

    A size that the configuration sets prints over its fields: the integer arguments of a decorated class's constructor, or the
    fields of a configuration object (a dataclass, or that of a Transformers model). To learn which, the constructor is called
    once more, on the meta device and quietly, when the table is first read.

    Args:
        model: The module, or its class.
        request_dims: Names of the request dimensions of each forward argument, by position; None leaves a position unnamed.

    Returns:
        A `Traced` callable around the module, or a factory of such for a class.

    Raises:
        InvalidInputError: `model` is neither a module nor a module class.
    """
    from torch import nn

    if model is None:
        return partial(trace, request_dims=request_dims)
    if isinstance(model, nn.Module):
        return Traced(model, request_dims)
    if not (isinstance(model, type) and issubclass(model, nn.Module)):
        raise InvalidInputError(f"dooly.trace: {model!r} is no torch.nn.Module; give a module or a module class")

    @wraps(model, updated=())
    def make(*args: object, **kwargs: object) -> Traced:
        return Traced(model(*args, **kwargs), request_dims, partial(constructed_sizes, model, args, kwargs))

    return make
