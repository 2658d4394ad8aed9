"""A traced model as plain values: what `dooly trace --json` writes, and what predictors read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError
from dooly.tracing._text import NO_BREAK, format_table

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1
PIECE = "piece"
"""Name of an operation that is a compiled piece."""


@dataclass(frozen=True, slots=True)
class TracedDim:
    """One dimension of a tensor."""

    expr: str
    """Expression over named origins, such as `2*kv_size + q_size` or `num_tokens`."""
    origin: str
    """`config`, `request` or `mixed`."""
    value: int | None
    """The size where `origin` is `config`, else None."""


@dataclass(frozen=True, slots=True)
class TracedTensor:
    """One tensor that an operation reads or writes."""

    dtype: str
    """Element type, as `bfloat16`."""
    shape: tuple[TracedDim, ...]
    """Its dimensions."""
    is_parameter: bool
    """Whether it is a parameter or buffer of the model."""
    parameter: str | None = None
    """Path of the parameter in the model; None for a buffer and for any other tensor."""


@dataclass(frozen=True, slots=True)
class TracedCall:
    """One run of an operation in the traced graph: a node of the data flow."""

    name: str
    """Unique within the model: the traced graph, and the position in the order that it runs, as `decoder.12`."""
    feeds_from: tuple[str, ...]
    """Names of the calls whose results it reads, directly or through views."""
    is_result: bool
    """Whether its result is what the next stage reads."""


@dataclass(frozen=True, slots=True)
class TracedOperation:
    """One operation of a model."""

    signature: str
    """Identity: the same in every model that runs the same operation."""
    name: str
    """Last part of the module path, or the module's class where that is a number or, for a model's own code, none; a collective
    and a step's own work go by the engine's name."""
    module: str
    """Path of the module that runs it; of repeated layers, the first one's."""
    module_class: str
    """Class name of the module."""
    stage: str
    """`decoder`, `logits`, `sample`, or `engine` for a step's own work."""
    stateful: bool
    """Whether its cost depends on engine state beside its inputs."""
    count: int
    """How often one step of the model runs it, over all layers."""
    placements: tuple[tuple[str, int], ...]
    """The traced modules that run it, each with how often one step does so in modules like it; the counts add up to `count`."""
    inputs: tuple[TracedTensor, ...]
    """Tensors read, parameters included."""
    outputs: tuple[TracedTensor, ...]
    """Tensors written."""
    flops: str
    """Floating-point operations of its matrix products, over named dimensions."""
    bytes: str
    """Least memory traffic in bytes, over named dimensions."""
    request_dims: tuple[str, ...]
    """Request dimensions in the order that store points number them, each an expression of the batch."""
    request_flops: str
    """`flops` with the configuration by value: over `request_dims` only."""
    request_bytes: str
    """`bytes` with the configuration by value: over `request_dims` only."""
    attributes: Mapping[str, Any]
    """Engine attributes of a stateful operation: head counts, window, cache type."""
    canonical: Mapping[str, Any]
    """The canonical graph behind the signature."""
    family: str = ""
    """Identity of its family, the same operation over other sizes: the signature of the canonical graph with its numbers masked.
    Empty for a step's own work."""
    family_numbers: tuple[float, ...] = ()
    """The numbers that were masked, in canonical order: what tells it from others of the family."""
    calls: tuple[TracedCall, ...] = ()
    """Each placement's place in the data flow, in the order of `placements`; empty in tables of before calls were kept."""

    def __post_init__(self) -> None:
        if self.calls and len(self.calls) != len(self.placements):
            raise InvalidInputError(
                f"operation {self.module or self.name}: {len(self.calls)} calls but {len(self.placements)} placements; "
                "give one of each, or no calls"
            )

    @property
    def is_piece(self) -> bool:
        """Whether it is a compiled piece, whose `module` is the stateful one that it runs up to; empty for the last piece."""
        return self.name == PIECE and not self.module_class

    @property
    def depends_on_context(self) -> bool:
        """Whether its cost depends on what each request computed before, as that of attention and of recurrent state does."""
        return self.stateful and self.stage == "decoder" and "num_experts" not in self.attributes


@dataclass(frozen=True, slots=True)
class TracedModel:
    """All operations that one step of a model runs; `print` shows them as a table."""

    model: str
    """Name of the model."""
    environment: Mapping[str, Any]
    """What the trace was made with: engine and versions, dtype, parallel layout."""
    operations: tuple[TracedOperation, ...]
    """Operations in the order they run."""

    def __repr__(self) -> str:
        return f"<TracedModel {self.model}: {len(self.operations)} operations>"

    def __str__(self) -> str:
        return format_table(self.model, [("operation", "count", "stage", "inputs -> outputs"), *map(_cells, self.operations)])

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Which call's result goes into which, as pairs of call names in the order that the readers run.

        Stages are traced apart: what reads nothing of its own stage reads the result of the stage before. Layers of one kind are
        traced once: what follows a later one reads the first. Calls of operations that the table leaves out have no edges.
        """
        edges: list[tuple[str, str]] = []
        results: list[str] = []
        for stage in dict.fromkeys(op.stage for op in self.operations):
            calls = [call for op in self.operations if op.stage == stage for call in op.calls]
            edges += [(name, call.name) for call in calls for name in call.feeds_from or results]
            results = [call.name for call in calls if call.is_result]
        known = {call.name for op in self.operations for call in op.calls}
        return tuple(edge for edge in edges if edge[0] in known)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data in the form of `dooly trace --json`."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "environment": dict(self.environment),
            "operations": [_operation_to_json(op) for op in self.operations],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TracedModel:
        """Return the traced model that `to_json` wrote.

        Raises:
            InvalidInputError: The data is of another schema.
        """
        if data.get("schema") != SCHEMA:
            msg = f"trace: schema {data.get('schema')!r} is not {SCHEMA}; trace the model again with this version of dooly"
            raise InvalidInputError(msg)
        operations = tuple(_operation_from_json(op) for op in data["operations"])
        return cls(data["model"], data["environment"], operations)


def _operation_to_json(op: TracedOperation) -> dict[str, Any]:
    data = {name: getattr(op, name) for name in TracedOperation.__slots__}
    data |= {key: [_tensor_to_json(t) for t in data[key]] for key in ("inputs", "outputs")}
    placements = [{"module": module, "count": count} for module, count in op.placements]
    return data | {
        "placements": placements,
        "calls": [{"name": call.name, "feeds_from": list(call.feeds_from), "is_result": call.is_result} for call in op.calls],
        "request_dims": list(op.request_dims),
        "attributes": dict(op.attributes),
        "canonical": dict(op.canonical),
        "family_numbers": list(op.family_numbers),
    }


def _tensor_to_json(tensor: TracedTensor) -> dict[str, Any]:
    shape = [{"expr": d.expr, "origin": d.origin} | ({"value": d.value} if d.value is not None else {}) for d in tensor.shape]
    named = {"parameter": tensor.parameter} if tensor.parameter is not None else {}
    return {"dtype": tensor.dtype, "shape": shape, "is_parameter": tensor.is_parameter} | named


def _operation_from_json(data: Mapping[str, Any]) -> TracedOperation:
    tensors = {key: tuple(_tensor_from_json(t) for t in data[key]) for key in ("inputs", "outputs")}
    placements = tuple((p["module"], p["count"]) for p in data["placements"])
    calls = tuple(TracedCall(c["name"], tuple(c["feeds_from"]), c["is_result"]) for c in data.get("calls", ()))
    changed = {"placements": placements, "calls": calls, "request_dims": tuple(data["request_dims"])}
    return TracedOperation(**{**data, **tensors, **changed, **_family_from_json(data)})


def _family_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an operation's family: as written, or, in a table of before there were any, by the canonical graph."""
    if "family" in data or data["stage"] == "engine":
        return {"family": data.get("family", ""), "family_numbers": tuple(data.get("family_numbers", ()))}
    from passes.family import find_family
    from passes.signature import from_json

    family = find_family(from_json(data["canonical"]))
    return {"family": family.signature, "family_numbers": family.numbers}


def _tensor_from_json(data: Mapping[str, Any]) -> TracedTensor:
    shape = tuple(TracedDim(d["expr"], d["origin"], d.get("value")) for d in data["shape"])
    return TracedTensor(data["dtype"], shape, data["is_parameter"], data.get("parameter"))


def _cells(operation: TracedOperation) -> tuple[str, str, str, str]:
    """Return path, count, stage, and the shapes read and written, over names, none of them broken in a line."""
    shapes = [*map(_shape, operation.inputs), f"->{NO_BREAK}{' '.join(map(_shape, operation.outputs))}"]
    return operation.module or operation.name, str(operation.count), operation.stage, " ".join(shapes)


def _shape(tensor: TracedTensor) -> str:
    return f"[{', '.join(dim.expr for dim in tensor.shape)}]".replace(" ", NO_BREAK)
