"""The `dooly` backend of `torch.compile`: captures ATen graphs with symbolic sizes, through AOTAutograd.

Registered under torch's `torch_dynamo_backends` entry point. The compiled module computes the same result as the eager one; on
the meta device there is nothing to compute, and the graph's fake outputs are returned instead.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dooly.errors import TraceError
from dooly.tracing._provenance import NO_PROVENANCE
from dooly.tracing._settings import symbolic_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from dooly.tracing._provenance import Provenance
    from passes.graph import CapturedGraph

_listeners: list[list[Capture]] = []
_OF_MODULE = re.compile(r"^L\['(\w+)'\]\._(?:modules|parameters|buffers)\b")
_LOCAL = re.compile(r"^L\['(\w+)'\]")


class Capture:
    """A graph as the backend saw it, before the caller tells what its arguments mean."""

    __slots__ = ("equalities", "graph", "group_sizes", "guards", "placeholders", "sources")

    def __init__(self, graph: torch.fx.Graph, placeholders: dict[str, str]) -> None:
        from torch._guards import TracingContext

        fake_mode = TracingContext.get().fake_mode
        assert fake_mode is not None
        assert fake_mode.shape_env is not None
        self.graph = graph
        self.placeholders = placeholders
        self.group_sizes = _group_sizes(graph)
        self.sources = _sources(fake_mode.shape_env)
        self.guards = tuple(guard.expr for guard in fake_mode.shape_env.guards)
        self.equalities = _equalities(fake_mode.shape_env, self.guards)

    def describe(
        self,
        request_dims: Mapping[str, tuple[str | None, ...]] | None = None,
        stateful: Mapping[str, Mapping[str, bool | int | float | str | None]] | None = None,
        held: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
        provenance: Provenance = NO_PROVENANCE,
    ) -> CapturedGraph:
        """Return the graph with what the caller knows of its arguments, stateful modules and configuration.

        Args:
            request_dims: Names of the request dimensions of each forward argument, by position.
            stateful: Attributes of the engine's stateful modules, by module path.
            held: Parameters that stateful modules read beside their operands, by module path and the parameter's own path.
            provenance: Which of the module's sizes its configuration sets, and how.
        """
        from passes.graph import CapturedGraph, HeldParameter, spell_source

        texts = [*self.placeholders.values(), *(s.text for s in self.sources.values())]
        stacks = [node.meta.get("nn_module_stack") or {} for node in self.graph.nodes]
        calls = [path for stack in stacks for path, _ in stack.values()]
        found = [*map(_OF_MODULE.match, texts), *map(_LOCAL.match, calls)]
        module = next((m[1] for m in found if m), "self")
        parameters = {
            path: tuple(HeldParameter(name, str(p.dtype).removeprefix("torch."), tuple(p.shape)) for name, p in tensors.items())
            for path, tensors in (held or {}).items()
        }
        sizes = {spell_source(source.text, module): source.value for source in self.sources.values()}
        sizes |= {f"{p.name}.size({i})": n for ps in parameters.values() for p in ps for i, n in enumerate(p.shape)}
        configured = {path: expr for path, size in sizes.items() if (expr := provenance.of(path, size)) is not None}
        fields = {symbol for expr in configured.values() for symbol in expr.free_symbols}
        return CapturedGraph(
            self.graph,
            sources=self.sources,
            equalities=self.equalities,
            module_argument=module,
            request_dims=request_dims or {},
            placeholders=self.placeholders,
            guards=self.guards,
            stateful=stateful or {},
            held=parameters,
            group_sizes=self.group_sizes,
            configured=configured,
            config_values={symbol: value for symbol, value in provenance.values.items() if symbol in fields},
        )


@contextmanager
def tracing() -> Iterator[list[Capture]]:
    """Collect the graphs that the `dooly` backend captures within the scope, with every size a symbol.

    Dynamo's settings and the gradient mode are afterwards what they were before. A module equal to one compiled before with the
    same backend runs that one's code and captures nothing: compile each with a backend of its own, `partial(dooly_backend)`.
    """
    captures: list[Capture] = []
    _listeners.append(captures)
    try:
        with symbolic_sizes():
            yield captures
    finally:
        _listeners.remove(captures)


def dooly_backend(graph_module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """Compile a Dynamo graph: capture its ATen form, and return code that computes the same.

    The entry point of `torch.compile(model, backend="dooly")`. Captured graphs go to every open `tracing()` scope.
    """
    from functorch.compile import aot_module_simplified

    names = [_source_text(n) for n in graph_module.graph.nodes if n.op == "placeholder"]

    def compile_graph(lowered: torch.fx.GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        placeholders = {}
        for node in lowered.graph.nodes:
            if node.op == "placeholder" and hasattr(node.meta.get("val"), "dtype"):
                placeholders[node.name] = names[node.meta["desc"].idx]
        capture = Capture(lowered.graph, placeholders)
        for captures in _listeners:
            captures.append(capture)
        return _fake_outputs(lowered) if _is_meta(lowered) else _boxed(lowered)

    return aot_module_simplified(  # type: ignore[no-any-return]
        graph_module,
        example_inputs,
        fw_compiler=compile_graph,
        bw_compiler=lambda backward, _inputs: _boxed(backward),
        keep_inference_input_mutations=True,
    )


def _source_text(node: torch.fx.Node) -> str:
    argument = node.meta.get("grapharg")
    return argument.source.name if argument is not None else node.name


def _sources(shape_env: Any) -> dict[Any, Any]:  # noqa: ANN401 - torch's ShapeEnv is private
    from passes.graph import SymbolSource

    values = shape_env.backed_var_to_val
    return {
        symbol: SymbolSource(sources[0].name, int(values[symbol]))
        for symbol, sources in shape_env.var_to_sources.items()
        if symbol in values and symbol.is_integer
    }


def _group_sizes(graph: torch.fx.Graph) -> dict[str, int]:
    """Return the number of ranks of each process group that PyTorch's collectives name."""
    import torch

    operators = [n for n in graph.nodes if getattr(n.target, "namespace", "").startswith("_c10d_functional")]
    named = [(n, i) for n in operators for i, a in enumerate(n.target._schema.arguments) if a.name == "group_name"]  # noqa: SLF001 - an operator tells its arguments nowhere else
    names = {str(node.args[i]) for node, i in named}
    resolve: Any = vars(torch.distributed.distributed_c10d)["_resolve_process_group"]  # as the operators find it
    return {name: int(resolve(name).size()) for name in sorted(names)}


def _equalities(shape_env: Any, guards: tuple[Any, ...]) -> tuple[tuple[Any, Any], ...]:  # noqa: ANN401 - torch's ShapeEnv is private
    import sympy

    pairs = [guard.args for guard in guards if isinstance(guard, sympy.Eq)]
    return (*shape_env.replacements.items(), *pairs)


def _is_meta(graph_module: torch.fx.GraphModule) -> bool:
    devices = {n.meta["val"].device.type for n in graph_module.graph.nodes if hasattr(n.meta.get("val"), "device")}
    return "meta" in devices


def _boxed(graph_module: torch.fx.GraphModule) -> Callable[..., Any]:
    from functorch.compile import make_boxed_func

    return make_boxed_func(graph_module.forward)  # type: ignore[no-any-return]


def _fake_outputs(graph_module: torch.fx.GraphModule) -> Callable[..., Any]:
    """Return code that makes the graph's outputs on the meta device from their fake values."""
    import torch
    from functorch.compile import make_boxed_func

    (output,) = (n for n in graph_module.graph.nodes if n.op == "output")
    values = [n.meta["val"] if isinstance(n, torch.fx.Node) else n for n in output.args[0]]

    def run(*_inputs: object) -> list[object]:
        return [_concrete(value) for value in values]

    return make_boxed_func(run)  # type: ignore[no-any-return]


def _concrete(value: Any) -> object:  # noqa: ANN401 - a graph output: tensor, symbolic int or constant
    import torch

    if isinstance(value, torch.Tensor):
        return torch.empty([_hint(d) for d in value.shape], dtype=value.dtype, device="meta")
    return _hint(value) if isinstance(value, torch.SymInt) else value


def _hint(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    hint = size.node.hint
    if hint is None:
        msg = f"trace: size {size} depends on the data, not on shapes; such operations cannot run on the meta device"
        raise TraceError(msg)
    return int(hint)
