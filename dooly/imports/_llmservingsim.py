"""LLMServingSim's bundles (casys-kaist/LLMServingSim, MIT): every layer of one rank of a model, in microseconds, eager mode.

`dense.csv` over tokens, `per_sequence.csv` over requests, `attention.csv` over one prefill chunk behind a context beside decodes
of one context, `skew.csv` over decodes of two contexts, whose times are sums of three shots; `meta.yaml` beside the folders of
ranks says how. A layer belongs to the operations of the model's own table that run it: by the last part of their module's path,
which is the engine's own name in both; the few that the bundle names by its own words stand in `BUNDLE_WORDS`. One that Dooly
wrote says in `gap_us` which part of each time is the gap to the next kernel.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
from dooly.predict._kinds import AttentionShape, kind_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

SOURCE = "LLMServingSim (casys-kaist/LLMServingSim), MIT, CASYS Lab at KAIST"
NS_PER_US = 1e3
_GIVE = "the folder of a model's bundle of LLMServingSim's profiler 1, as rtxpro6000/llama-3.1-8b"
_VERSION = "1"
_VARIANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_SHOTS = 3
BUNDLE_WORDS = {
    "embed_tokens": "embedding",
    "input_layernorm": "layernorm",
    "post_attention_layernorm": "layernorm",
    "norm": "final_layernorm",
    "logits_processor": "lm_head",
    "q_norm": "qk_norm",
    "k_norm": "qk_norm",
}
"""What a bundle calls operations that it does not name as the engine does."""
TIMED_TOGETHER = "qk_norm"
"""One time for the norms of queries and of keys: each has the part of its bytes."""


def read_bundle(path: Path, traced: TracedModel) -> Reading:
    """Return what a model's bundle says of its operations, with the facts of how it was measured.

    Args:
        path: The folder of a model, with one for each number of ranks; or the one for the ranks of the table.
        traced: The model's table of operations.

    Raises:
        InvalidInputError: The bundle has nothing for the table's ranks, is of another version of the profiler, or a file of it is
            missing, lacks a column or holds no numbers.
    """
    folder = _folder(path, ranks_of(traced))
    found = read_layers(folder, traced)
    meta = folder.parent / "meta.yaml"
    facts = _facts(meta)
    dtype = traced.environment["dtype"]
    if (variant := facts.pop("variant")) not in {None, _VARIANTS.get(dtype)}:
        raise InvalidInputError(f"{meta}: its layers are of variant {variant}, not in {dtype}; give a bundle in {dtype}")
    # Layers are placed by name, so nothing but its name tells a bundle of another model.
    measured = facts.pop("model")
    if measured is not None and measured.rpartition("/")[2].lower() != traced.model.lower():
        raise InvalidInputError(f"{meta}: its layers are those of {measured}, not of {traced.model}; import it as that model")
    gap_ns = NS_PER_US * facts.pop("gap_us")
    placed = tuple(replace(rows, latency_ns=np.maximum(rows.latency_ns - gap_ns, 0.0)) for rows in found.placed)
    return Reading(placed, found.unplaced, facts)


def read_layers(folder: Path, traced: TracedModel) -> Reading:
    """Return what the files for one number of ranks say of a model's operations.

    Raises:
        InvalidInputError: A file is missing, lacks a column or holds no numbers.
    """
    layers = {
        name: (file, *points)
        for file, size in (("dense.csv", "tokens"), ("per_sequence.csv", "sequences"))
        for name, points in _layers(folder / file, size).items()
    }
    placed, used = [], set()
    for operation in measured_operations(traced):
        word = BUNDLE_WORDS.get(operation.name, operation.name)
        if isinstance(kind_of(operation), AttentionShape):
            placed += [_attention(folder, operation), *_skew(folder, operation)]
        elif word in layers and _is_placeable(operation):
            used.add(word)
            file, sizes, latency_ns = layers[word]
            batches = sized_batches(operation, sizes.tolist())
            placed.append(Placed(operation, batches, latency_ns * _part(operation, traced, word), f"{file} {word}"))
    unplaced = {f"{layers[name][0]} {name}": len(layers[name][1]) for name in sorted(layers.keys() - used)}
    if (folder / "moe.csv").is_file():
        unplaced["moe.csv, whose times go by experts reached"] = len(read_rows(folder / "moe.csv", ("time_us",), _GIVE))
    return Reading(tuple(placed), unplaced, {})


def _folder(path: Path, ranks: int) -> Path:
    """Return the folder for a number of ranks, within a model's bundle or itself."""
    if path.name.startswith("tp") and path.name[2:].isdigit():
        check_ranks(path, ranks, (int(path.name[2:]),))
        return path
    known = [int(found.name[2:]) for found in path.glob("tp*") if found.name[2:].isdigit()]
    if not known:
        raise InvalidInputError(f"{path}: holds no folder tp1, tp2, ... of a bundle; give {_GIVE}")
    check_ranks(path, ranks, known)
    return path / f"tp{ranks}"


def _facts(path: Path) -> dict[str, Any]:
    """Return what `meta.yaml` says of how a bundle was measured, and of which model."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: cannot be read ({error}); give {_GIVE}") from error
    found: dict[str, str] = {}
    for name, value in re.findall(r"^ *(\w+): *(.+?) *$", text, re.MULTILINE):
        found.setdefault(name, _unquoted(value))
    for name in ("profiler_version", "vllm_version", "gpu"):
        if name not in found:
            raise InvalidInputError(f"{path}: lacks {name}; give {_GIVE}")
    if found["profiler_version"].partition(".")[0] != _VERSION:
        raise InvalidInputError(f"{path}: is of profiler {found['profiler_version']}, of which nothing is known; give {_GIVE}")
    return {
        "model": found.get("model"),
        "variant": found.get("variant"),
        "device": found["gpu"],
        "engine": "vllm",
        "engine_version": found["vllm_version"],
        "cuda_version": found.get("cuda_version"),
        "block_size": int(found["block_size"]) if found.get("block_size", "").isdigit() else None,
        "execution_mode": "eager",
        "source": found.get("source", SOURCE),
        "gap_us": _number(path, found.get("gap_us", "0")),
    }


def _unquoted(text: str) -> str:
    """Return a scalar of YAML: strings in double quotes are as JSON has them, in single ones a quote stands twice."""
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text)) if text.startswith('"') else text
    except ValueError:
        return text.strip('"')


def _number(path: Path, text: str) -> float:
    """Return what a bundle says of its gaps."""
    try:
        return float(text)
    except ValueError as error:
        raise InvalidInputError(f"{path}: gap_us is {text!r}, no number; correct it") from error


def _is_placeable(operation: TracedOperation) -> bool:
    """Tell whether a layer's times are those of the operation: a collective shares its module with one, and has none."""
    return not any(str(label).startswith("dooly.") for label in operation.canonical.get("nodes", ()))


def _part(operation: TracedOperation, traced: TracedModel, word: str) -> float:
    """Return which part of a layer's time is the operation's: all, but for layers that the bundle times together."""
    if word != TIMED_TOGETHER:
        return 1.0
    joint = {op.signature: _volume(op) for op in traced.operations if BUNDLE_WORDS.get(op.name) == TIMED_TOGETHER}
    return joint[operation.signature] / sum(joint.values())


def _volume(operation: TracedOperation) -> float:
    sizes = [float(d.value) for t in operation.outputs for d in t.shape if d.value is not None]
    return float(np.prod(sizes))


def _layers(path: Path, size: str) -> dict[str, tuple[Ints, Floats]]:
    """Return sizes and latencies in nanoseconds of each layer in a file, by growing size."""
    rows = read_rows(path, ("layer", size, "time_us"), _GIVE)
    names = np.array([row["layer"] for row in rows])
    sizes, latency_ns = np.array(counts(path, rows, size)), NS_PER_US * numbers(path, rows, "time_us")
    order = np.lexsort((latency_ns, sizes))
    return {name: (sizes[own], latency_ns[own]) for name in dict.fromkeys(names) for own in [order[names[order] == name]]}


def _attention(folder: Path, operation: TracedOperation) -> Placed:
    """Return attention over a chunk behind a context beside decodes of one context."""
    path, columns = folder / "attention.csv", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
    rows = read_rows(path, (*columns, "time_us"), _GIVE)
    batches = [
        _batch([length] * count, chunk, context)
        for chunk, context, count, length in zip(*(counts(path, rows, c) for c in columns), strict=True)
    ]
    return Placed(operation, tuple(batches), NS_PER_US * numbers(path, rows, "time_us"), path.name)


def _skew(folder: Path, operation: TracedOperation) -> list[Placed]:
    """Return attention over decodes of two contexts, where it was measured."""
    path, columns = folder / "skew.csv", ("n", "nb", "pc", "kp", "kvs", "kv_big")
    if not path.is_file():
        return []
    rows = read_rows(path, (*columns, "t_skew_us"), _GIVE)
    batches = [
        _batch([longest] * num_long + [length] * (count - num_long), chunk, context)
        for count, num_long, chunk, context, length, longest in zip(*(counts(path, rows, c) for c in columns), strict=True)
    ]
    return [Placed(operation, tuple(batches), NS_PER_US * numbers(path, rows, "t_skew_us") / _SHOTS, path.name)]


def _batch(contexts: list[int], chunk: int, context: int) -> Batch:
    """Return decodes that each read so many positions, their own included, beside a chunk behind a context."""
    prefill = (chunk,) if chunk else ()
    return Batch((*((1,) * len(contexts)), *prefill), (*(max(c - 1, 0) for c in contexts), *((context,) if chunk else ())))
