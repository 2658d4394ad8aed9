"""Vidur's profiles of a model (microsoft/vidur, MIT): sarathi's kernels in float16, by the profiler's medians in milliseconds.

`mlp.csv` over tokens: what surrounds attention in one layer, with the model's widths in columns; `attention.csv` over prefill
chunks behind a context, one request each, and decodes of one context. Both hold all numbers of ranks. A product belongs to the
operation of its widths, attention to that of its heads; what has no widths of its own goes by the class of module that runs it.
Both element types of 16 bits take as long, so a table in bfloat16 is served too.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.imports._reading import (
    Placed,
    Reading,
    check_ranks,
    counts,
    measured_operations,
    numbers,
    ranks_of,
    read_rows,
    sized_batches,
)
from dooly.predict._kinds import AttentionShape, LinearLayer, kind_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from dooly.imports._reading import Rows
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]

SOURCE = "Vidur (microsoft/vidur), MIT, Microsoft: kernels of sarathi in float16"
NS_PER_MS = 1e6
_GIVE = "a model's folder of Vidur's profiles, as data/profiling/compute/a100/meta-llama/Meta-Llama-3-8B"
_RANKS = "num_tensor_parallel_workers"
_MLP_WIDTHS = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd")
_HEADS = ("n_q_head", "n_kv_head", "n_embd")
_BATCH = ("batch_size", "prefill_chunk_size", "kv_cache_size")
_ATTENTION_TIMES = ("time_stats.attn_prefill.median", "time_stats.attn_decode.median")
_CACHE_TIME = "time_stats.attn_kv_cache_save.median"
"""Profiles of some backends have it in the others."""
_DTYPES = ("bfloat16", "float16")
_CLASSES = {"VocabParallelEmbedding": ("emb",), "SiluAndMul": ("mlp_act",)}
_TENSORS_OF_ADDING_NORM = 3
"""Weight, hidden states and the residual that it adds."""


def read_vidur(path: Path, traced: TracedModel) -> Reading:
    """Return what a model's profiles say of its operations, with the facts of how they were measured.

    Raises:
        InvalidInputError: There are no profiles, none for the table's ranks, or one cannot be read or lacks a column.
    """
    found = [read(path / name, traced) for name, read in _FILES.items() if (path / name).is_file()]
    if not found:
        raise InvalidInputError(f"{path}: holds neither mlp.csv nor attention.csv; give {_GIVE}")
    facts: dict[str, Any] = {"device": _device(path), "engine": "sarathi", "execution_mode": "eager", "source": SOURCE}
    for part in found:
        facts |= part.facts
    unplaced = {what: count for part in found for what, count in part.unplaced.items() if count}
    return Reading(tuple(placed for part in found for placed in part.placed), unplaced, facts)


def _device(path: Path) -> str | None:
    """Return the device by the name of the folder that has all its models."""
    parts = path.resolve().parts
    return parts[parts.index("compute") + 1] if "compute" in parts[:-1] else None


def _of_ranks(path: Path, columns: tuple[str, ...], ranks: int) -> tuple[Rows, int]:
    """Return the rows of a file for a number of ranks, and how many are for others."""
    rows = read_rows(path, (*columns, _RANKS), _GIVE)
    found = counts(path, rows, _RANKS)
    check_ranks(path, ranks, found)
    own = [row for row, number in zip(rows, found, strict=True) if number == ranks]
    return own, len(rows) - len(own)


def _read_layers(path: Path, traced: TracedModel) -> Reading:
    """Place what surrounds attention."""
    ranks = ranks_of(traced)
    rows, num_others = _of_ranks(path, (*_MLP_WIDTHS, "use_gated_mlp", "num_tokens"), ranks)
    timed = [column.split(".")[1] for column in rows[0] if column.startswith("time_stats.") and column.endswith(".median")]
    widths = list(zip(*(counts(path, rows, name) for name in _MLP_WIDTHS), strict=True))
    layers = {
        (kind.n, kind.k)
        for op in measured_operations(traced)
        if isinstance(kind := kind_of(op), LinearLayer) and kind.dtype in _DTYPES
    }
    placed, unplaced = [], Counter({f"{path.name} of other ranks": num_others})
    for found in dict.fromkeys(widths):
        own = [row for row, of in zip(rows, widths, strict=True) if of == found]
        products = _products(found, ranks, gated=own[0]["use_gated_mlp"] == "True")
        is_own = set(products) <= layers
        used = set()
        for operation in measured_operations(traced):
            if (names := _times_of(operation, products, found[2], is_own=is_own)) and set(names) <= set(timed):
                used |= set(names)
                times = [NS_PER_MS * numbers(path, own, f"time_stats.{name}.median") for name in names]
                batches = sized_batches(operation, counts(path, own, "num_tokens"))
                placed.append(Placed(operation, batches, np.sum(times, axis=0), f"{path.name} {' + '.join(names)}"))
        unplaced.update({f"{path.name} {name}": len(own) for name in timed if name not in used})
    return Reading(tuple(placed), unplaced, {})


def _products(widths: tuple[int, ...], ranks: int, *, gated: bool) -> dict[tuple[int, int], str]:
    """Return the products of one rank by their outputs and inputs, given the values of `_MLP_WIDTHS`."""
    heads, kv_heads, width, inner = widths
    into = (heads + 2 * kv_heads) * (width // heads)
    up = 2 * inner if gated else inner
    return {
        (width, inner // ranks): "mlp_down_proj",
        (up // ranks, width): "mlp_up_proj",
        (width, width // ranks): "attn_post_proj",
        (into // ranks, width): "attn_pre_proj",
    }


def _times_of(operation: TracedOperation, products: dict[tuple[int, int], str], width: int, *, is_own: bool) -> tuple[str, ...]:
    """Return the names of the times that an operation takes, one after the other; none where it was not timed.

    Args:
        operation: The operation.
        products: Names of the products by outputs and inputs.
        width: Width of the hidden states.
        is_own: Whether the model has all of these products, so that what tells no widths is its own too.
    """
    kind = kind_of(operation)
    if isinstance(kind, LinearLayer):
        name = products.get((kind.n, kind.k))
        return () if name is None or kind.dtype not in _DTYPES else (name,)
    if kind is not None or operation.request_dims != ("num_tokens",) or not is_own:
        return ()
    if operation.module_class == "RMSNorm":
        is_whole = any(t.is_parameter and [dim.value for dim in t.shape] == [width] for t in operation.inputs)
        # vLLM adds the residual in the norm's own kernel, Vidur in one of its own.
        added = ("add",) if len(operation.inputs) == _TENSORS_OF_ADDING_NORM else ()
        return ("input_layernorm", *added) if is_whole else ()
    return _CLASSES.get(operation.module_class, ("attn_rope",) if operation.module_class.endswith("RotaryEmbedding") else ())


def _read_attention(path: Path, traced: TracedModel) -> Reading:
    """Place attention, with its write to the cache where that was timed apart."""
    ranks = ranks_of(traced)
    rows, num_others = _of_ranks(path, (*_HEADS, *_BATCH, *_ATTENTION_TIMES, "block_size"), ranks)
    shapes = [
        (q // ranks, kv // ranks, width // q) for q, kv, width in zip(*(counts(path, rows, n) for n in _HEADS), strict=True)
    ]
    unplaced = Counter({f"{path.name} of other ranks": num_others})
    operations = {
        (kind.num_heads, kind.num_kv_heads, kind.head_size): operation
        for operation in measured_operations(traced)
        if isinstance(kind := kind_of(operation), AttentionShape) and kind.dtype in _DTYPES and kind.window is None
    }
    placed = []
    for shape in dict.fromkeys(shapes):
        own = [row for row, of in zip(rows, shapes, strict=True) if of == shape]
        if (operation := operations.get(shape)) is None:
            heads, kv_heads, size = shape
            unplaced[f"{path.name} of {heads} heads and {kv_heads} key/value heads of {size}"] = len(own)
            continue
        sizes = zip(*(counts(path, own, name) for name in _BATCH), strict=True)
        batches = tuple(Batch((chunk or 1,) * count, (context,) * count) for count, chunk, context in sizes)
        placed.append(Placed(operation, batches, _attention_ns(path, own), path.name))
    backend = rows[0].get("attention_backend", "").rpartition(".")[2] or None
    return Reading(tuple(placed), unplaced, {"block_size": counts(path, rows[:1], "block_size")[0], "attention_backend": backend})


def _attention_ns(path: Path, rows: Rows) -> Floats:
    """Return the time of each row: of its prefill or its decodes, of which one is empty, and of writing to the cache."""
    filled = [{**row, **{name: row.get(name) or "0" for name in (*_ATTENTION_TIMES, _CACHE_TIME)}} for row in rows]
    return np.asarray(NS_PER_MS * np.sum([numbers(path, filled, name) for name in (*_ATTENTION_TIMES, _CACHE_TIME)], axis=0))


_FILES = {"mlp.csv": _read_layers, "attention.csv": _read_attention}
