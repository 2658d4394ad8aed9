"""`dooly trace`: the operations of a model, each dimension with its origin."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dooly.cli._batch import DEFAULT_BATCH, parse_batch
from dooly.cli._options import BatchText, HtmlFile, JsonFile, Model, engine_flags
from dooly.cli._output import progress_bar, write_json
from dooly.cli._trace_table import print_operations
from dooly.engines import ENGINES, ServingConfig, find_model, trace_model, trace_plain_model
from dooly.errors import InvalidInputError
from dooly.report import cost_operations

if TYPE_CHECKING:
    from dooly.engines import ModelSource
    from dooly.tracing import TracedModel

TracedEngine = StrEnum("TracedEngine", {name.upper(): name for name in (*ENGINES, "torch")})  # type: ignore[misc]
"""Whose execution of a model can be traced: an engine's, or that of plain PyTorch, which serves nobody."""
_DEFAULT = TracedEngine(ServingConfig().engine)


@engine_flags(
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "enable_expert_parallel",
    "attention_backend",
    "moe_backend",
    "enforce_eager",
)
def trace(  # noqa: PLR0913 - one argument an option
    model: Model,
    *,
    engine: Annotated[
        TracedEngine, typer.Option(help="Whose execution of the model to trace; torch is a plain forward.")
    ] = _DEFAULT,
    pipeline_rank: Annotated[int, typer.Option(min=0, help="Which rank of the pipeline to trace.", rich_help_panel="Engine")] = 0,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="Trace as on this GPU, which need not be here: h100, h200, b200, ...")
    ] = None,
    batch: BatchText = DEFAULT_BATCH,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    serving: ServingConfig,
) -> None:
    """Trace a model's operations; needs neither weights nor the memory to hold them."""
    source = find_model(model)
    step = parse_batch(batch)
    with progress_bar(f"{source.name}: tracing"):
        traced = _traced(source, serving, engine, pipeline_rank, hardware)
    rows = cost_operations(traced, step)
    if html_file is not None:
        from dooly.report import write_trace

        write_trace(traced, rows, batch, html_file)
    if write_json(traced.to_json(), json_file):
        print_operations(traced, rows, batch)


def _traced(
    source: ModelSource, serving: ServingConfig, engine: TracedEngine, pipeline_rank: int, hardware: str | None
) -> TracedModel:
    if engine == "torch":
        if pipeline_rank:
            raise InvalidInputError("--pipeline-rank: --engine torch traces one device; leave it out")
        if hardware is not None:
            raise InvalidInputError("--hardware: --engine torch traces plain PyTorch, the same on every device; leave it out")
        return trace_plain_model(source, serving)
    return trace_model(source, replace(serving, engine=engine.value), pipeline_rank=pipeline_rank, hardware=hardware)
