"""Capture one call of a module's forward: Dynamo and AOTAutograd follow it, and stop before anything runs.

What fails is told in one line, with the line of the model's code at which it failed.
"""

from __future__ import annotations

import gc
import re
import sysconfig
from contextlib import contextmanager
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from traceback import FrameSummary
from typing import TYPE_CHECKING, Any

from dooly.errors import TraceError
from dooly.tracing._capture import dooly_backend, tracing
from dooly.tracing._hidden_work import WITHOUT_STEPS, find_unrolled, layers_whole, refuse_packed_weights, refuse_unrolled_steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from dooly.tracing._capture import Capture

_ARGUMENT = re.compile(r"^L\['(?P<local>\w+)'\]\[(?:(?P<position>\d+)|'(?P<keyword>\w+)')\]")
_LOCAL = re.compile(r"^L\['\w+'\]")
_WRAPPED = {"args": Parameter.VAR_POSITIONAL, "kwargs": Parameter.VAR_KEYWORD}
"""What torch names the arguments of a module that has hooks, or is its own: it compiles a wrapper then."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_EXPLANATION = re.compile(r"^ *Explanation: +(\S.*)$", re.MULTILINE)
_DATA_GUARD = re.compile(r"(Could not .* data-dependent expression .*?) \(unhinted")
_RECURRENT = re.compile(r"\bRNN\b")
"""What Dynamo says of any recurrent layer."""
_DATA_DEPENDENT = re.compile(r"data-dependent|\.item\(\)|nonzero|unbacked|Tensor\.tolist", re.IGNORECASE)


def capture_forward(module: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Capture:
    """Return the graph of one inference call of a module. The call itself does not run, and leaves no trace in the process.

    Raises:
        TraceError: A module within hides its weights or its steps from any graph; the message names it. Or the code cannot be
            captured in one graph, or a size depends on tensor values; the message names its line and what to do.
    """
    import torch

    def stop(graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Any:  # noqa: ANN401 - never returns
        dooly_backend(graph_module, example_inputs)
        raise _CapturedError

    refuse_packed_weights(module)
    try:
        with tracing() as captures, layers_whole(module), _layers_in_parts(), _collector_paused():
            torch.compile(module, backend=stop, fullgraph=True)(*args, **(kwargs or {}))
    except torch._dynamo.exc.BackendCompilerFailed as error:
        if not isinstance(error.inner_exception, _CapturedError):
            raise _refusal(module, error) from error
    except torch._dynamo.exc.TorchDynamoException as error:
        raise _refusal(module, error) from error
    if not captures:
        raise TraceError(
            f"{type(module).__name__}: this call runs no tensor operation, so nothing is there to trace; check the inputs"
        )
    (capture,) = captures
    refuse_unrolled_steps(module, capture)
    _refuse_sizes_by_data(capture, module)
    _name_arguments(capture, module)
    _name_modules(capture, module)
    return capture


class _CapturedError(Exception):
    """The graph is captured: leave the compiler, before it compiles anything."""


def _refuse_sizes_by_data(capture: Capture, module: nn.Module) -> None:
    """Raise where a size or a number comes from tensor values, as of `nonzero` and `.item()`: no request dimension tells it."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    for node in capture.graph.nodes:
        if node.op == "call_function" and free_unbacked_symbols(node.meta.get("val")):
            stack = [FrameSummary(file, int(line), "") for file, line in _FRAME.findall(node.stack_trace or "")]
            raise TraceError(
                f"{_innermost(stack)}{type(module).__name__}: {node.target} gives a size or number that depends on the data; "
                "give it a size that shapes fix, such as by torch.where in place of nonzero, or move it out of forward"
            )


@contextmanager
def _layers_in_parts() -> Iterator[None]:
    """Keep `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` off their fused operators, which hide what they compute."""
    from torch.backends import mha

    enabled = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(enabled)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's cycle collector from walking a large model's objects again and again: a tenth of a trace's time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _name_arguments(capture: Capture, module: nn.Module) -> None:
    """Give what a wrapper of the module's forward took as `*args` and `**kwargs` the names that forward itself has for it."""
    outer = signature(module.forward, follow_wrapped=False).parameters
    parameters = signature(module.forward).parameters
    positional = _positional(parameters)
    rest = next((n for n, p in parameters.items() if p.kind is Parameter.VAR_POSITIONAL), "args")
    others = next((n for n, p in parameters.items() if p.kind is Parameter.VAR_KEYWORD), "kwargs")

    def rename(match: re.Match[str]) -> str:
        local, keyword = match["local"], match["keyword"]
        kind = outer[local].kind if local in outer else _WRAPPED.get(local)
        if kind is Parameter.VAR_KEYWORD and keyword is not None:
            return f"L['{keyword}']" if keyword in parameters else f"L['{others}']['{keyword}']"
        if kind is not Parameter.VAR_POSITIONAL or keyword is not None:
            return match[0]
        position = int(match["position"]) + (len(_positional(outer)) if local in outer else 0)
        return f"L['{positional[position]}']" if position < len(positional) else f"L['{rest}'][{position - len(positional)}]"

    capture.placeholders = {node: _ARGUMENT.sub(rename, text) for node, text in capture.placeholders.items()}
    capture.sources = {s: replace(source, text=_ARGUMENT.sub(rename, source.text)) for s, source in capture.sources.items()}


def _name_modules(capture: Capture, module: nn.Module) -> None:
    """Take out of module paths the forward that a patched module keeps as its own method: it leads back to the module."""
    modules = dict(module.named_modules(remove_duplicate=False))

    def shorten(path: str) -> str:
        owner, patched, below = path.partition(".forward.__self__")
        found = modules.get(_LOCAL.sub("", owner).lstrip("."))
        return shorten(owner + below) if patched and found is not None and found.forward.__self__ is found else path

    for node in capture.graph.nodes:
        if stack := node.meta.get("nn_module_stack"):
            node.meta["nn_module_stack"] = {key: (shorten(path), kind) for key, (path, kind) in stack.items()}


def _positional(parameters: Mapping[str, Parameter]) -> list[str]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind in kinds]


def _refusal(module: nn.Module, error: Exception) -> TraceError:
    """Return why a module cannot be captured, in one line that starts with the line of its code."""
    if (unrolled := find_unrolled(module)) and _RECURRENT.search(str(error)):
        return TraceError(
            f"{_place(error)}{type(module).__name__}: PyTorch runs {unrolled} step by step, so a graph would hold as many as "
            f"this call has; {WITHOUT_STEPS}"
        )
    return TraceError(
        f"{_place(error)}{type(module).__name__}: torch.compile cannot capture its forward in one graph: {_reason(error)}; "
        f"{_next_step(module, str(error))}"
    )


def _reason(error: Exception) -> str:
    """Return the telling sentence of torch's message: its explanation if it has one, else its first line."""
    message = str(getattr(error, "inner_exception", error)).strip() or type(error).__name__
    sentence = _EXPLANATION.search(message) or _DATA_GUARD.search(message)
    return " ".join((sentence[1] if sentence else message.partition("\n")[0]).split()).rstrip(".:")


def _place(error: BaseException) -> str:
    """Return `file:line: ` of the model's code at which torch failed, if it says so."""
    return _innermost(getattr(error, "real_stack", None) or getattr(error.__cause__, "real_stack", None) or ())


def _innermost(stack: Sequence[FrameSummary]) -> str:
    """Return `file:line: ` of the innermost frame outside torch, and outside Python's library where one is; empty if none."""
    import torch

    site, library = sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")
    compiler = (str(Path(torch.__file__).parent), __file__)
    found = [f for f in stack if not f.filename.startswith(compiler)]
    found = [f for f in found if f.filename.startswith(site) or not f.filename.startswith(library)] or found
    return f"{found[-1].filename}:{found[-1].lineno}: " if found else ""


def _next_step(module: nn.Module, message: str) -> str:
    config = getattr(module, "config", None)
    if getattr(config, "_experts_implementation", None) == "eager":
        return "call model.set_experts_implementation('grouped_mm'), whose work does not depend on which experts were chosen"
    if _DATA_DEPENDENT.search(message):
        return "write it without Python that looks at tensor values (torch.where for if), or move it out of forward"
    return "move that code out of forward"
