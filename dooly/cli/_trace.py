"""`dooly trace`: the operations of a model, each dimension with its origin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._options import EngineName, JsonFile, Model, engine_flags
from dooly.cli._output import new_table, progress_bar, show, write_json
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from dooly.trace import TracedModel, TracedTensor

_STYLES = {"request": "cyan", "mixed": "magenta", "config": ""}
_SIGNATURE_DIGITS = 8


@engine_flags("dtype", "tensor_parallel_size", "pipeline_parallel_size", "enable_expert_parallel", "attention_backend")
def trace(
    model: Model,
    *,
    engine: Annotated[EngineName, typer.Option(help="Whose execution of the model to trace.")] = EngineName.VLLM,
    pipeline_rank: Annotated[int, typer.Option(min=0, help="Which rank of the pipeline to trace.", rich_help_panel="Engine")] = 0,
    json_file: JsonFile = None,
    serving: ServingConfig,
) -> None:
    """Trace a model's operations; needs neither weights nor the memory to hold them."""
    source = find_model(model)
    if engine is EngineName.TORCH:
        raise InvalidInputError(
            "--engine: torch traces modules, not configurations yet; use --engine vllm, or dooly.trace(module) in Python"
        )
    from dooly.engines.vllm import trace_vllm_model

    with progress_bar(f"{source.name}: tracing"):
        traced = trace_vllm_model(source, serving, pipeline_rank=pipeline_rank)
    if write_json(traced.to_json(), json_file):
        show(_table(traced))


def _table(traced: TracedModel) -> Table:
    columns = ("stage", "module", "class", "count", "inputs", "FLOPs", "bytes", "signature")
    table = new_table(*columns, numbers=("count",))
    for op in traced.operations:
        signature = op.signature[:_SIGNATURE_DIGITS]
        inputs = _inputs(op.inputs)
        table.add_row(op.stage, op.module, op.module_class, str(op.count), inputs, op.request_flops, op.request_bytes, signature)
    return table


def _inputs(tensors: tuple[TracedTensor, ...]) -> Text:
    """Return one line an input: element type and dimensions, those that requests set coloured apart."""
    from rich.text import Text

    lines = []
    for tensor in tensors:
        dims = [Text(f"({dim.expr})" if " " in dim.expr else dim.expr, _STYLES[dim.origin]) for dim in tensor.shape]
        lines.append(Text.assemble((f"{tensor.dtype} ", "dim"), Text(" × ").join(dims)))  # noqa: RUF001 - as dimensions are written
    return Text("\n").join(lines)
