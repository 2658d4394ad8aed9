"""Profiles for Vidur (microsoft/vidur): `mlp.csv` and `attention.csv` of a model, in milliseconds.

Their place is `data/profiling/compute/<device>/<model>/`; `dooly.imports` says what each holds, where it reads them. vLLM's norms
add the residual in their own kernel, so that `add` holds what else a layer runs, which is nothing in a Llama. Attention's time
holds its write to the cache.
"""

from __future__ import annotations

import csv
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.adapters._grid import AttentionPoint, Limits, attention_points, sizes_up_to
from dooly.adapters._model_sizes import KV_HEADS, sizes_of
from dooly.adapters._operation_prices import attention_ns, sized_ns, the_attention
from dooly.adapters._result import ExportResult, limit_notes, write_file
from dooly.catalog import LAYER
from dooly.errors import UnsupportedModelError
from dooly.tracing import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

TOOL = "vidur"
_NAMES = {
    "embed_tokens": "emb",
    "input_layernorm": "input_layernorm",
    "qkv_proj": "attn_pre_proj",
    "rotary_emb": "attn_rope",
    "o_proj": "attn_post_proj",
    "post_attention_layernorm": "post_attention_layernorm",
    "gate_up_proj": "mlp_up_proj",
    "act_fn": "mlp_act",
    "down_proj": "mlp_down_proj",
}
_OTHERS = "add"
_ATTENTION = ("attn_prefill", "attn_decode", "attn_kv_cache_save")
_STATISTICS = ("min", "max", "mean", "median")
_RANKS = "num_tensor_parallel_workers"
_NOTES = (
    "Vidur counts neither the embedding, nor the head, nor sampling",
    "Vidur adds a tenth to attention over several requests, unless its batching_overhead_fraction options are 0",
)


def export_vidur(latency: LatencyModel, model: ModelSource, serving: ServingConfig, folder: Path) -> ExportResult:
    """Write the profiles of a model for Vidur's own predictors.

    Args:
        latency: The latency model.
        model: The model, by its configuration.
        serving: The settings that the latency model was made with; their limits are those of the profiles.
        folder: Where the two files go; rows of other ranks that lie there stay.

    Raises:
        UnsupportedModelError: Vidur's files have no place for a model of this structure.
        InvalidInputError: A file cannot be written.
    """
    limits, attention = Limits.of(latency, serving), the_attention(latency, TOOL)
    sizes = sizes_up_to(limits.num_tokens, serving.cudagraph_capture_sizes)
    points = [point for point in attention_points(limits) if not (point.chunk and point.num_decodes)]
    mlp, attends = _facts(latency, model, serving, limits)
    rows = [
        _write(folder / "mlp.csv", mlp, _layers(latency, sizes, limits.context)),
        _write(folder / "attention.csv", attends, _attention(points, attention_ns(latency, attention, points))),
    ]
    own = () if latency.is_sum_of_operations else ("what layers and the engine take beyond their operations has no place",)
    return ExportResult((folder / "mlp.csv", folder / "attention.csv"), sum(rows), (*_NOTES, *own, *limit_notes(latency)))


def _facts(
    latency: LatencyModel, model: ModelSource, serving: ServingConfig, limits: Limits
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what Vidur selects rows of either file by."""
    heads, kv_heads, width, inner, vocabulary = sizes_of(
        model, TOOL, "num_attention_heads", KV_HEADS, "hidden_size", "intermediate_size", "vocab_size"
    )
    mlp: dict[str, Any] = {
        "n_head": heads,
        "n_kv_head": kv_heads,
        "n_embd": width,
        "n_expanded_embd": inner,
        "vocab_size": vocabulary,
        "use_gated_mlp": True,
        _RANKS: serving.tensor_parallel_size,
    }
    attends: dict[str, Any] = {
        "n_embd": width,
        "n_q_head": heads,
        "n_kv_head": kv_heads,
        "block_size": latency.block_size,
        _RANKS: serving.tensor_parallel_size,
        "max_model_len": limits.context,
        "attention_backend": latency.environment.attention_backend or "unknown",
    }
    return mlp, attends


def _layers(latency: LatencyModel, sizes: Ints, context: int) -> Iterable[Mapping[str, Any]]:
    """Yield a row for each number of tokens: milliseconds of each of Vidur's operations in one layer."""
    times = dict.fromkeys((*_NAMES.values(), _OTHERS), np.zeros(len(sizes)))
    counts = dict.fromkeys(times, 0)
    for operation, latency_ns in sized_ns(latency, "num_tokens", sizes, context):
        is_inside = layer_of(operation.module) is not None
        name = _NAMES.get(operation.name, _OTHERS)
        if is_inside or name == "emb":
            times[name] = times[name] + operation.count * latency_ns / 1e6
            counts[name] += operation.count
    if lacking := [own for own, name in _NAMES.items() if not counts[name]]:
        raise UnsupportedModelError(
            f"--format {TOOL}: {latency.traced.model} has no {lacking[0]}, which Vidur's files time; export a model that "
            "is built like Llama"
        )
    num_layers = sum(op.count for op in latency.traced.operations if op.stage == "engine" and op.name == LAYER)
    per_layer = {name: time / (1 if name == "emb" else num_layers) for name, time in times.items()}
    for index, size in enumerate(sizes.tolist()):
        yield _timed({name: time[index] for name, time in per_layer.items()}) | {"num_tokens": size}


def _attention(points: list[AttentionPoint], latency_ns: Floats) -> Iterable[Mapping[str, Any]]:
    """Yield a row for each chunk behind a context, and for decodes of one context."""
    for point, milliseconds in zip(points, (latency_ns / 1e6).tolist(), strict=True):
        times = {"attn_prefill": milliseconds, "attn_kv_cache_save": 0.0} if point.chunk else {"attn_decode": milliseconds}
        empty = {f"time_stats.{name}.{kind}": "" for name in _ATTENTION for kind in (*_STATISTICS, "std")}
        yield (
            empty
            | _timed({"attn_kv_cache_save": 0.0} | times)
            | {
                "batch_size": 1 if point.chunk else point.num_decodes,
                "prefill_chunk_size": point.chunk,
                "kv_cache_size": point.chunk_context if point.chunk else point.decode_context - 1,
                "is_prefill": bool(point.chunk),
            }
        )


def _timed(milliseconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the columns of times; each was priced once, so that all statistics of it are one."""
    return {
        f"time_stats.{name}.{kind}": "0" if kind == "std" else f"{value:.8g}"
        for name, value in milliseconds.items()
        for kind in (*_STATISTICS, "std")
    }


def _write(path: Path, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows with the same facts in each, beside those of other ranks that are there; return how many were written."""
    own = [{**row, **facts} for row in rows]
    others: list[dict[str, Any]] = []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as handle:
            others = [row for row in csv.DictReader(handle) if row.get(_RANKS) != str(facts[_RANKS])]
    columns = list(dict.fromkeys([*own[0], *(others[0] if others else ())]))
    content = StringIO()
    writer = csv.DictWriter(content, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*others, *own])
    write_file(path, content.getvalue())
    return len(own)
