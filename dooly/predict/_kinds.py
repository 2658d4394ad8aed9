"""What kinds of operation have a family on a device: the configuration that tells one of a kind from another, and its work.

The operation's own graph and closed forms decide, never a name: a linear layer is a product with one whole matrix of parameters,
a collective is one by its operator, attention and experts by the engine's attributes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dooly.tracing import evaluate_form, form_names

if TYPE_CHECKING:
    from dooly.tracing import TracedOperation

LINEAR, ATTENTION, COLLECTIVE, MOVES = "linear", "attention", "collective", "moves"
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "gather")
_GATED = 3
"""Matrices of a gated expert: gate, up and down."""
_SOME_SIZE = 1024.0
"""Of a request dimension, to tell whether FLOPs are those of a product: expressions divide sizes by small numbers."""
_MATRIX = 2
"""Dimensions of a linear layer's weight."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A product x[m, k] · weight[n, k]."""

    n: int
    """Outputs."""
    k: int
    """Inputs."""
    dtype: str
    """Element type of weight and activations."""


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Grouped-query attention over a paged KV cache."""

    num_heads: int
    """Query heads of one rank."""
    num_kv_heads: int
    """Key/value heads of one rank."""
    head_size: int
    """Size of a head."""
    dtype: str
    """Element type of the KV cache."""


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective over the ranks that share a layer."""

    operator: str
    """`all_reduce`, `all_gather`, ..."""
    num_ranks: int
    """Ranks that take part."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of gated experts without biases, one rank's part of it."""

    hidden_size: int
    """Width of the tokens."""
    intermediate_size: int
    """Width within an expert, of the part that a rank has."""
    top_k: int
    """Experts that each token goes to."""
    num_experts: int
    """Experts over all ranks."""
    num_local_experts: int
    """Experts of a rank."""
    dtype: str
    """Element type of weights and activations."""


Kind = LinearLayer | AttentionShape | Experts | Collective


def kind_of(operation: TracedOperation) -> Kind | None:
    """Return the kind of an operation with the configuration that tells it from others of the kind; None for any other."""
    return _attention(operation) or _experts(operation) or _collective(operation) or _linear(operation)


def moves_only(operation: TracedOperation) -> bool:
    """Tell whether an operation multiplies no matrices, so that its cost is that of the bytes it moves."""
    return operation.request_flops == "0" and _collective(operation) is None


def _attention(operation: TracedOperation) -> AttentionShape | None:
    a = operation.attributes
    plain = a.get("kind") == "Attention" and a.get("sliding_window") in {None, -1} and not a.get("attention_chunk_size")
    if not plain or a["head_size"] != a["head_size_v"]:
        return None
    return AttentionShape(a["num_heads"], a["num_kv_heads"], a["head_size"], a["kv_cache_dtype"])


def _experts(operation: TracedOperation) -> Experts | None:
    a = operation.attributes
    if a.get("kind") != "MoE":
        return None
    router = a["num_experts"] * a["hidden_size"]
    gated = a["expert_parameters"] == _GATED * a["hidden_size"] * a["intermediate_size"]
    # Beside the router nothing may run in it that the family does not know, such as shared experts.
    if not gated or a["has_bias"] or a["custom_routing"] or a["shared_parameters"] not in {0, router}:
        return None
    sizes = (a["hidden_size"], a["intermediate_size"], a["top_k"], a["num_experts"], a["num_local_experts"])
    return Experts(*sizes, a["dtype"])


def router_of(operation: TracedOperation) -> LinearLayer | None:
    """Return the router's product where a mixture of experts runs it too."""
    a = operation.attributes
    return LinearLayer(a["num_experts"], a["hidden_size"], a["dtype"]) if a["shared_parameters"] else None


def _collective(operation: TracedOperation) -> Collective | None:
    for label in operation.canonical.get("nodes", ()):
        operator, _, arguments = str(label).removeprefix("dooly.").partition(" ")
        if operator in _COLLECTIVES and str(label).startswith("dooly."):
            ranks = json.loads(arguments[: arguments.index("}") + 1])
            return Collective(operator, int(max(ranks.items())[1]))
    return None


def _linear(operation: TracedOperation) -> LinearLayer | None:
    matrices = [t for t in operation.inputs if t.is_parameter and len(t.shape) == _MATRIX]
    if operation.stateful or len(matrices) != 1 or len(operation.request_dims) != 1:
        return None
    n, k = (dim.value for dim in matrices[0].shape)
    sizes = dict.fromkeys(form_names(operation.request_dims[0]), _SOME_SIZE)
    m, flops = (float(evaluate_form(form, sizes)) for form in (operation.request_dims[0], operation.request_flops))
    if n is None or k is None or not m or flops != 2.0 * m * n * k:
        return None
    return LinearLayer(n, k, matrices[0].dtype)
