"""From captured graphs to a table of operations: run the passes, count repeated layers, keep what JSON needs."""

from __future__ import annotations

import re
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from dooly.tracing._model import PIECE, TracedCall, TracedDim, TracedOperation, TracedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import sympy

    from passes.flow import Flow
    from passes.graph import CapturedGraph
    from passes.operation import Operation, TensorSpec
    from passes.pipeline import AnalysedOperation, Analysis

_LAYER_NUMBER = re.compile(r"(^|\.)\d+(?=\.)")


def tabulate(  # noqa: PLR0913 - a graph, and what its caller knows of it
    captured: CapturedGraph,
    *,
    stage: str,
    counts: Mapping[str, int] | None = None,
    state_cost: Callable[[Mapping[str, Any]], tuple[sympy.Expr, sympy.Expr] | None] | None = None,
    model_class: str = "",
    compiled: bool = False,
) -> tuple[TracedOperation, ...]:
    """Return the operations of a captured graph; those that layers repeat over the same sizes as one row with a count.

    Args:
        captured: The graph with its symbol sources.
        stage: Which part of a step it is: `decoder`, `logits` or `sample`.
        counts: How many layers each traced layer stands for, by its path.
        state_cost: FLOPs and bytes of a stateful operation by its engine attributes and the `dtype` of its first operand, over
            the engine's request dimensions; where it gives None, what the graph shows counts.
        model_class: Class name of the traced module, by which its own code goes; without it, by the stage.
        compiled: Whether the engine compiles what lies between stateful operations: these pieces are operations then.
    """
    from passes.pipeline import COMPILED_PIPELINE, PIPELINE, analyse

    analysis = analyse(captured, COMPILED_PIPELINE if compiled else PIPELINE)
    rows: dict[tuple[str, str, tuple[str, ...]], TracedOperation] = {}
    for place, analysed in enumerate(analysis.operations):
        call = _call(place, analysis.flow, stage)
        is_named = analysed.operation.is_piece or analysed.operation.module_class
        operation = analysed.operation if is_named else replace(analysed.operation, module_class=model_class)
        row = replace(_row(replace(analysed, operation=operation), analysis, stage, counts or {}, state_cost), calls=(call,))
        key = (row.signature, _LAYER_NUMBER.sub("", row.module), row.request_dims)
        first = rows.get(key)
        if first is not None:
            placements, calls = first.placements + row.placements, first.calls + row.calls
            row = replace(first, count=first.count + row.count, placements=placements, calls=calls)
        rows[key] = row
    return tuple(rows.values())


def _row(
    analysed: AnalysedOperation,
    analysis: Analysis,
    stage: str,
    counts: Mapping[str, int],
    state_cost: Callable[[Mapping[str, Any]], tuple[sympy.Expr, sympy.Expr] | None] | None,
) -> TracedOperation:
    from passes.signature import to_json

    operation, by_value = analysed.operation, analysis.origins.by_value
    flops, traffic, request_dims = analysed.cost.flops, analysed.cost.bytes, analysed.request_dims
    state = (
        state_cost({"dtype": operation.inputs[0].dtype, **operation.stateful})
        if operation.stateful is not None and state_cost is not None
        else None
    )
    if state is not None:
        # What a stateful module does beside its state, such as projections of its own, shows in the graph.
        beside = (flops, traffic) if flops != 0 else (0, 0)
        flops, traffic = state[0] + beside[0], state[1] + beside[1]
        names = {str(s) for s in flops.free_symbols | traffic.free_symbols}
        request_dims = (*request_dims, *sorted(names - set(request_dims)))
    module = operation.module
    count = prod(n for place, n in counts.items() if module == place or module.startswith(f"{place}."))
    return TracedOperation(
        signature=analysed.signature,
        name=_name(operation, stage),
        module=module,
        module_class=operation.module_class,
        stage=stage,
        stateful=operation.stateful is not None,
        count=count,
        placements=((module, count),),
        inputs=tuple(map(_tensor, (*operation.inputs, *operation.held))),
        outputs=tuple(map(_tensor, operation.outputs)),
        flops=str(flops),
        bytes=str(traffic),
        request_dims=request_dims,
        request_flops=str(by_value(flops)),
        request_bytes=str(by_value(traffic)),
        attributes=operation.stateful or {},
        canonical=to_json(analysed.canonical),
        family=analysed.family.signature,
        family_numbers=analysed.family.numbers,
    )


def _name(operation: Operation, stage: str) -> str:
    """Return the last part of an operation's module path, its class where that says nothing; of a collective, its own name."""
    from passes.operators import is_collective, operator_name

    if operation.is_piece:
        return PIECE
    first, last = operation.nodes[0], operation.module.rpartition(".")[2]
    if is_collective(first):
        return operator_name(first).rpartition(".")[2]
    return last if last and not last.isdecimal() else operation.module_class or stage


def _call(place: int, flow: Flow, stage: str) -> TracedCall:
    """Return an operation's place in the data flow, operations named by stage and position.

    Of several results the last is the stage's own: folded layers hand theirs to the layers that repeat them.
    """
    sources = tuple(f"{stage}.{source}" for source in flow.feeds_from[place])
    return TracedCall(f"{stage}.{place}", sources, flow.results[-1:] == (place,))


def _tensor(spec: TensorSpec) -> TracedTensor:
    shape = tuple(TracedDim(str(d.expr), str(d.origin), d.value) for d in spec.shape)
    return TracedTensor(spec.dtype, shape, spec.is_parameter, spec.parameter)
