"""What a model needs measured: the points of each operation, and what the step does beyond its operations.

A plain module's whole forward is measured as an operation too, for what its own code takes beyond its operations.

Beside the traced operations, two more are measured on the engine: whole layers, of which prediction keeps what they take beyond
their operations (module calls, views, allocation), and the step's own time (scheduling, input preparation, output handling).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dbstore import JsonObject
from dooly.batch import Batch
from dooly.dtypes import item_bytes
from dooly.errors import UnsupportedModelError
from dooly.tracing import TracedModel, TracedOperation, evaluate_form, form_names, layer_counts, layer_of, rename_form

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

LAYER = "layer"
"""Name of the operation that is a whole layer."""
STEP = "step"
"""Name of the operation that is a step less its modules."""
MODULE = "module"
"""Name of the operation that is the whole forward of a plain module."""
DECODE_GROWTH_TOKENS = 64
"""Tokens that a decode may still grow by while its batch is measured, so that its point holds as far."""

Key = tuple[str, tuple[str, ...]]
"""Signature and request dimensions: one operation may run over tokens in one place and over requests in another."""


class Counted(Protocol):
    """One batch, or many: numbers or arrays of them."""

    @property
    def num_tokens(self) -> Any:  # noqa: ANN401 - an integer or an array
        """Tokens computed in a step."""

    @property
    def num_sampled(self) -> Any:  # noqa: ANN401 - an integer or an array
        """Places that a token is sampled at in a step: one a request, and one a draft."""


def key_of(operation: TracedOperation) -> Key:
    """Return what tells an operation's samples from those of others in a step."""
    return operation.signature, operation.request_dims


def engine_operations(traced: TracedModel, own_code: Sequence[TracedOperation]) -> tuple[TracedOperation, ...]:
    """Return the operations for what layers and steps do of their own.

    Args:
        traced: The traced model.
        own_code: Operations that no leaf module runs; their time is part of the own time around them, so they are part of its
            identity.
    """
    # A compiled piece ends one layer and begins the next: no layer has code of its own.
    counts = {} if any(op.is_piece for op in traced.operations) else layer_counts(traced.operations)
    layers: dict[str, list[str]] = {layer: [] for layer in counts}
    outside: list[str] = [op.signature for op in own_code if layer_of(op.module) is None]
    for operation in (*traced.operations, *own_code):
        for module, _ in operation.placements:
            if (layer := layer_of(module)) in layers:
                layers[layer].append(operation.signature)
    found = [_own(LAYER, path, members, counts[path]) for path, members in layers.items()]
    return (*found, _own(STEP, "", outside, 1))


def with_whole_module(traced: TracedModel) -> TracedModel:
    """Return the table of a plain module with its whole forward as one operation more, at the end.

    What it runs is its identity: its operations, each with its count and how it depends on the module's request dimensions, and
    the code around them, which the trace has a digest of.
    """
    names = tuple(dict.fromkeys(n for op in traced.operations for dim in op.request_dims for n in form_names(dim)))
    order = {name: f"d{place}" for place, name in enumerate(names)}
    members = [f"{op.signature}{[rename_form(d, order) for d in op.request_dims]}*{op.count}" for op in traced.operations]
    whole = _own(MODULE, "", [*members, f"code {traced.environment.get('code')}"], 1)
    return replace(traced, operations=(*traced.operations, replace(whole, request_dims=names)))


def point_at(request_dims: Sequence[str], sizes: Mapping[str, int]) -> JsonObject:
    """Return the store point of an operation at sizes of what its request dimensions are expressions of.

    A dimension goes by its place in the canonical graph, `d0` for the first: what a model calls it would make another model's
    point of the same operation another one.
    """
    return JsonObject({f"d{place}": int(evaluate_form(dim, sizes)) for place, dim in enumerate(request_dims)})


def sizes_at(points: Sequence[Mapping[str, int]], request_dims: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the values of an operation's request dimensions at its store points, shape (num_points, num_dims)."""
    values = [[point[f"d{place}"] for place in range(len(request_dims))] for point in points]
    return np.array(values, dtype=np.float64).reshape(len(points), len(request_dims))


def point_of(operation: TracedOperation, batch: Batch) -> JsonObject:
    """Return the store point of an operation in a batch: hashable, equal by content.

    Raises:
        UnsupportedModelError: The operation runs over something that no batch tells.
    """
    if operation.stage == "engine" or operation.depends_on_context:
        requests = sorted(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
        new = {"num_new_requests": batch.num_new_requests} if operation.stage == "engine" else {}
        return JsonObject({"batch": [list(pair) for pair in requests], **new})
    try:
        return point_at(operation.request_dims, batch_dims(batch))
    except KeyError as error:
        raise UnsupportedModelError(
            f"operation {operation.module or operation.name}: runs over {error.args[0]}, but a batch tells no more than "
            f"{' and '.join(batch_dims(batch))}; it can be traced, not measured or predicted"
        ) from error


def batch_at(point: Mapping[str, Any]) -> Batch:
    """Return the batch that is the store point of an operation that sees each request."""
    new, computed = zip(*point["batch"], strict=True)
    return Batch(new, computed, point.get("num_new_requests", 0))


def batch_dims(batch: Counted) -> dict[str, Any]:
    """Return the request dimensions that all operations of an engine share, by name, in one batch or in many.

    What runs over requests are logits and sampling, at one place of each, and where a step verifies drafts, at each of these too.
    """
    return {"num_tokens": batch.num_tokens, "num_reqs": batch.num_sampled}


def parameter_bytes(operation: TracedOperation) -> int:
    """Return the size of the parameters that an operation reads as a whole, in bytes; tables looked up by index do not count."""
    if operation.is_piece:  # what it moves for no token
        return int(evaluate_form(operation.request_bytes, dict.fromkeys(form_names(operation.request_bytes), 0)))
    if any(t.dtype in {"int32", "int64"} and not t.is_parameter for t in operation.inputs):
        return 0
    return sum(prod((d.value or 1 for d in t.shape), start=item_bytes(t.dtype)) for t in operation.inputs if t.is_parameter)


def _own(name: str, path: str, members: list[str], count: int) -> TracedOperation:
    text = f"dooly-engine-1:{name}:{','.join(sorted(members))}"
    return TracedOperation(
        signature=hashlib.sha256(text.encode()).hexdigest()[:32],
        name=name,
        module=path,
        module_class="",
        stage="engine",
        stateful=True,
        count=count,
        placements=((path, count),),
        inputs=(),
        outputs=(),
        flops="0",
        bytes="0",
        request_dims=("num_tokens", "num_reqs", "num_new_requests"),
        request_flops="0",
        request_bytes="0",
        attributes={},
        canonical={"scheme": 1, "nodes": [text], "edges": []},
    )
