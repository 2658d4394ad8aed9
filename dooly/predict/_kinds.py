"""What kinds of operation have a family on a device: the configuration that tells one of a kind from another, and its work.

The operation's own graph and closed forms decide, never a name: a linear layer is a product with one whole matrix of parameters,
a collective is one by its operator, attention and experts by the engine's attributes. How weights are quantised shows in the
element types of weights and scales.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dooly.tracing import evaluate_form, form_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.tracing import TracedOperation, TracedTensor

LINEAR, ATTENTION, COLLECTIVE, MOVES = "linear", "attention", "collective", "moves"
FULL_PRECISION = ("bfloat16", "float16")
"""Element types of which products and attention take as long."""
_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "gather")
_GATED = 3
"""Matrices of a gated expert: gate, up and down."""
_SOME_SIZE = 1024.0
"""Of a request dimension, to tell whether FLOPs are those of a product: expressions divide sizes by small numbers."""
_FP8 = "float8_e4m3fn"
_FP8_CACHES = ("fp8", "fp8_e4m3", _FP8)
MARLIN = "experts-w4a16"
"""The family of experts that Marlin multiplies."""
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
    """Element type of weight and activations; `fp8` has a scale for a whole matrix, a row or a column, `fp8_block` one for each
    tile."""


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
    window: int | None = None
    """Tokens that a query sees at most; None for all before it."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Attention over a cache of one compressed vector a token, which heads share (DeepSeek-V2, arXiv 2405.04434).

    The projections around it are operations of their own, but for that between the vector and each head's keys and values.
    """

    num_heads: int
    """Query heads of one rank."""
    rank: int
    """Width of the vector, but for its part with positions."""
    rope_size: int
    """Width of that part."""
    nope_size: int
    """Width of a head's queries and keys without it."""
    value_size: int
    """Width of a head's values."""
    dtype: str
    """Element type of the cache."""

    @property
    def expansion(self) -> int:
        """Parameters between the vector and all heads' keys and values."""
        return self.num_heads * self.rank * (self.nope_size + self.value_size)


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective over the ranks that share a layer."""

    operator: str
    """`all_reduce`, `all_gather`, ..."""
    num_ranks: int
    """Ranks that take part."""


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of gated experts, one rank's part of it; biases are next to nothing beside its matrices."""

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
    """Element type of weights and activations; `fp8` and `fp8_block` as of linear layers; of weights alone `w4a16` and
    `w4a16_mxfp4`, integers and MXFP4 as Marlin unpacks them, and `mxfp4`, as Triton's own kernel does."""


Kind = LinearLayer | AttentionShape | LatentAttention | Experts | Collective


def kind_of(operation: TracedOperation) -> Kind | None:
    """Return the kind of an operation with the configuration that tells it from others of the kind; None for any other."""
    return _attention(operation) or _latent(operation) or _experts(operation) or _collective(operation) or _linear(operation)


def families_of(kind: Kind) -> tuple[str, ...]:
    """Return the names of the families that price a kind: one, for attention those of decodes and of prefills."""
    if isinstance(kind, Collective):
        return ()
    suffix = "" if kind.dtype in FULL_PRECISION else f"-{kind.dtype}"
    if isinstance(kind, LatentAttention):  # one family for each set of widths: no table varies them
        widths = "-".join(str(size) for size in (kind.rank, kind.rope_size, kind.nope_size, kind.value_size))
        return f"latent-decodes-{widths}{suffix}", f"latent-prefills-{widths}{suffix}"
    if isinstance(kind, AttentionShape):
        suffix += "" if kind.window is None else "-window"
        return f"decodes{suffix}", f"prefills{suffix}"
    if isinstance(kind, LinearLayer):
        return (f"linear{suffix}",)
    return (MARLIN if by_marlin(kind) else f"experts{suffix}",)


def by_marlin(kind: Experts) -> bool:
    """Tell whether Marlin multiplies the experts: one family for all that it unpacks."""
    return kind.dtype.startswith("w4a16")


def moves_only(operation: TracedOperation) -> bool:
    """Tell whether an operation multiplies no matrices, so that its cost is that of the bytes it moves."""
    return operation.request_flops == "0" and _collective(operation) is None


def _attention(operation: TracedOperation) -> AttentionShape | None:
    a = operation.attributes
    if a.get("kind") != "Attention" or a.get("attention_chunk_size") or a["head_size"] != a["head_size_v"]:
        return None
    window = None if a.get("sliding_window") in {None, -1} else a["sliding_window"]
    return AttentionShape(a["num_heads"], a["num_kv_heads"], a["head_size"], _cached(a["kv_cache_dtype"]), window)


def _latent(operation: TracedOperation) -> LatentAttention | None:
    a = operation.attributes
    if a.get("kind") != "MLAAttention":
        return None
    widths = (a["kv_lora_rank"], a["qk_rope_head_dim"], a["qk_nope_head_dim"], a["v_head_dim"])
    # A cache of no type of its own has the one of activations.
    cached = operation.outputs[0].dtype if a["kv_cache_dtype"] == "auto" else _cached(a["kv_cache_dtype"])
    return None if a.get("is_sparse") else LatentAttention(a["num_heads"], *widths, cached)


def _cached(dtype: str) -> str:
    return "fp8" if dtype in _FP8_CACHES else dtype


def _experts(operation: TracedOperation) -> Experts | None:
    a = operation.attributes
    if a.get("kind") != "MoE":
        return None
    gated = a["expert_parameters"] == _GATED * a["hidden_size"] * a["intermediate_size"]
    dtype = _weights(operation, a["dtype"])
    # Nothing may run in it that the families do not know.
    if not gated or dtype is None or a["custom_routing"] or products_beside(operation) is None:
        return None
    sizes = ("hidden_size", "intermediate_size")
    hidden, inner = (a.get(f"unpadded_{name}", a[name]) for name in sizes)
    found = Experts(hidden, inner, a["top_k"], a["num_experts"], a["num_local_experts"], dtype)
    # Marlin takes whole tiles, padding too; other kernels were timed at the model's own widths, and pad within.
    return replace(found, **{name: a[name] for name in sizes}) if by_marlin(found) else found


def _weights(operation: TracedOperation, plain: str) -> str | None:
    """Return how the weights of experts are quantised; `plain` where they are not, None in a way that no family knows."""
    stacked = [t for t in operation.inputs if t.is_parameter and len(t.shape) == _MATRIX + 1]
    if "expert_bytes" not in operation.attributes:
        return plain
    types = list(dict.fromkeys(t.dtype for t in stacked))
    kernel = str(operation.attributes.get("kernel")).lower()
    if _FP8 in types:
        # Triton multiplies by one scale as it does by blocks of them; of other kernels both were timed.
        one_scale = "fp8_block" if "triton" in kernel else "fp8"
        return {(_FP8,): one_scale, (_FP8, "float32"): "fp8_block"}.get(tuple(types))
    # Two elements a byte, with a scale of a byte for 32; or eight in an integer, with one of two bytes for a group.
    if "marlin" in kernel:
        return "w4a16_mxfp4" if types == ["uint8"] else "w4a16" if types[:1] == ["int32"] else None
    return "mxfp4" if types == ["uint8"] else None


def products_beside(operation: TracedOperation) -> tuple[LinearLayer, ...] | None:
    """Return the products that a mixture of experts runs too, its router's and those of shared experts; None for unknown ones.

    Their matrices must be all the parameters that it holds beside its own experts'.
    """
    a = operation.attributes
    router = LinearLayer(a["num_experts"], a["hidden_size"], a["dtype"])
    if a["shared_parameters"] in {0, router.n * router.k}:  # experts' biases look like matrices
        return (router,) if a["shared_parameters"] else ()
    matrices = [t for t in operation.inputs if t.is_parameter and len(t.shape) == _MATRIX]
    sizes = [tuple(dim.value or 0 for dim in t.shape) for t in matrices]
    found = []
    for place, (tensor, (n, k)) in enumerate(zip(matrices, sizes, strict=True)):
        if router.k not in {n, k} or (tensor.dtype == "float32" and (n, k) != (router.n, router.k)):
            continue  # scales, and packed weights' own shapes
        found.append(LinearLayer(n, k, _scaled(matrices[place + 1 :][:1]) if tensor.dtype == _FP8 else tensor.dtype))
    return tuple(found) if sum(layer.n * layer.k for layer in found) == a["shared_parameters"] else None


def _collective(operation: TracedOperation) -> Collective | None:
    for label in operation.canonical.get("nodes", ()):
        operator, _, arguments = str(label).removeprefix("dooly.").partition(" ")
        if operator in _COLLECTIVES and str(label).startswith("dooly."):
            ranks = json.loads(arguments[: arguments.index("}") + 1])
            return Collective(operator, int(max(ranks.items())[1]))
    return None


def _linear(operation: TracedOperation) -> LinearLayer | None:
    matrices = [t for t in operation.inputs if t.is_parameter and len(t.shape) == _MATRIX]
    weights = [t for t in matrices if t.dtype != "float32"] if any(t.dtype == _FP8 for t in matrices) else matrices
    if operation.stateful or len(weights) != 1 or len(operation.request_dims) != 1:
        return None
    n, k = (dim.value for dim in weights[0].shape)
    sizes = dict.fromkeys(form_names(operation.request_dims[0]), _SOME_SIZE)
    m, flops = (float(evaluate_form(form, sizes)) for form in (operation.request_dims[0], operation.request_flops))
    if n is None or k is None or not m or flops != 2.0 * m * n * k:
        return None
    if weights[0].dtype != _FP8:
        return LinearLayer(n, k, weights[0].dtype)
    if not any(t.dtype == _FP8 and not t.is_parameter for t in operation.inputs):
        return None  # weights alone are quantised
    out = operation.outputs[0].shape[-1].value
    return LinearLayer(*((k, n) if out == k != n else (n, k)), _scaled(matrices))


def _scaled(tensors: Sequence[TracedTensor]) -> str:
    """Return how 8-bit elements share scales: by tiles where a scale tensor has several rows and columns."""
    tiles = any(t.dtype == "float32" and all(dim.value != 1 for dim in t.shape) for t in tensors if len(t.shape) == _MATRIX)
    return "fp8_block" if tiles else "fp8"
