"""LLMServingSim's bundles (casys-kaist/LLMServingSim, MIT): every layer of one rank of a model, in microseconds, eager mode.

`dense.csv` over tokens, `per_sequence.csv` over requests, `attention.csv` over one prefill chunk behind a context beside decodes
of one context, `skew.csv` over decodes of two contexts, whose times are sums of three shots. A layer belongs to the operations of
the model's own table that run it: by the last part of their module's path, which is the engine's own name in both; the few that
the bundle names by its own words stand in `_WORDS`.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.imports._measured import write_measured
from dooly.predict._family import fit_family
from dooly.predict._family_features import mixed_inputs
from dooly.predict._features import AttentionWork, BatchArrays
from dooly.predict._kinds import AttentionShape, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._family import FamilyRegressor
    from dooly.predict._hardware import Hardware
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]

NS_PER_US = 1e3
_SHOTS = 3
_CHUNK = 4096
"""Batches that are made into arrays at once."""
_WORDS = {
    "embed_tokens": "embedding",
    "input_layernorm": "layernorm",
    "post_attention_layernorm": "layernorm",
    "norm": "final_layernorm",
    "logits_processor": "lm_head",
    "q_norm": "qk_norm",
    "k_norm": "qk_norm",
}
_JOINT = "qk_norm"
"""One time for the norms of queries and of keys: each has the part of its bytes."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one bundle says of a model's operations on a device."""

    sizes: dict[str, tuple[Floats, Floats]]
    """Sizes and latencies in nanoseconds by signature, of operations over tokens or requests."""
    attention: dict[str, FamilyRegressor]
    """Regressors of attention by signature."""
    unplaced: tuple[str, ...]
    """Layers of the bundle that no operation of the model runs, and operations that it has no layer for."""


def read_bundle(folder: Path, traced: TracedModel, hardware: Hardware) -> Bundle:
    """Return what a bundle's folder of one number of ranks says of a model's operations.

    Raises:
        InvalidInputError: A file is missing, lacks a column or holds no numbers.
    """
    layers = {
        name: table
        for file, size in (("dense.csv", "tokens"), ("per_sequence.csv", "sequences"))
        for name, table in _layers(folder / file, size).items()
    }
    sizes: dict[str, tuple[Floats, Floats]] = {}
    attention: dict[str, FamilyRegressor] = {}
    used, lacking = set(), []
    for operation in traced.operations:
        if operation.stage == "engine" or operation.signature in sizes or operation.signature in attention:
            continue
        kind = kind_of(operation)
        word = _WORDS.get(operation.name, operation.name)
        if isinstance(kind, AttentionShape):
            attention[operation.signature] = _attention(folder, kind, hardware)
        elif word in layers and _is_placeable(operation):
            used.add(word)
            at, latency_ns = layers[word]
            sizes[operation.signature] = (at, latency_ns * _part(operation, traced, word))
        else:
            lacking.append(f"operation {operation.module or operation.name}.{operation.name}")
    return Bundle(sizes, attention, (*(f"layer {name}" for name in sorted(layers.keys() - used)), *lacking))


def build_bundled_device(bundles: Mapping[Path, TracedModel], out: Path, facts: Hardware) -> dict[Path, Bundle]:
    """Write the data of a device out of bundles, each with the table of its model, and return what each said.

    Raises:
        InvalidInputError: A bundle lacks a file or a column.
    """
    out.mkdir(parents=True, exist_ok=True)
    found = {folder: read_bundle(folder, traced, facts) for folder, traced in bundles.items()}
    sizes = {signature: points for bundle in found.values() for signature, points in bundle.sizes.items()}
    shortest = min(float(latency_ns.min()) for _, latency_ns in sizes.values())
    (out / "hardware.json").write_text(json.dumps(asdict(replace(facts, launch_ns=shortest)), indent=1) + "\n")
    write_measured(sizes, {op.signature: op for traced in bundles.values() for op in traced.operations}, out)
    for bundle in found.values():
        for signature, regressor in bundle.attention.items():
            regressor.save(out / f"attention-{signature}.cbm")
    return found


def _is_placeable(operation: TracedOperation) -> bool:
    """Tell whether a layer's times are those of the operation: a collective shares its module with one, and has none."""
    return not any(str(label).startswith("dooly.") for label in operation.canonical.get("nodes", ()))


def _part(operation: TracedOperation, traced: TracedModel, word: str) -> float:
    """Return which part of a layer's time is the operation's: all, but for layers that the bundle times together."""
    if word != _JOINT:
        return 1.0
    joint = {op.signature: _volume(op) for op in traced.operations if _WORDS.get(op.name) == _JOINT}
    return joint[operation.signature] / sum(joint.values())


def _volume(operation: TracedOperation) -> float:
    sizes = [float(d.value) for t in operation.outputs for d in t.shape if d.value is not None]
    return float(np.prod(sizes))


def _layers(path: Path, size: str) -> dict[str, tuple[Floats, Floats]]:
    rows = _rows(path, ("layer", size, "time_us"))
    found = {}
    for name in dict.fromkeys(row["layer"] for row in rows):
        points = sorted((float(row[size]), NS_PER_US * float(row["time_us"])) for row in rows if row["layer"] == name)
        found[name] = (np.array([p for p, _ in points]), np.array([t for _, t in points]))
    return found


def _attention(folder: Path, shape: AttentionShape, hardware: Hardware) -> FamilyRegressor:
    """Fit attention over all batches of a bundle; each batch is a configuration of its own when errors are judged."""
    batches, latency_us = [], []
    for row in _rows(folder / "attention.csv", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")):
        chunk, context, count, length = (int(row[c]) for c in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode"))
        batches.append(_batch([length] * count, chunk, context))
        latency_us.append(float(row["time_us"]))
    if (folder / "skew.csv").is_file():
        for row in _rows(folder / "skew.csv", ("n", "nb", "pc", "kp", "kvs", "kv_big", "t_skew_us")):
            count, long_ones = int(row["n"]), int(row["nb"])
            lengths = [int(row["kv_big"])] * long_ones + [int(row["kvs"])] * (count - long_ones)
            batches.append(_batch(lengths, int(row["pc"]), int(row["kp"])))
            latency_us.append(float(row["t_skew_us"]) / _SHOTS)
    parts = [BatchArrays.of(batches[i : i + _CHUNK]).attention(None) for i in range(0, len(batches), _CHUNK)]
    work = AttentionWork(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(AttentionWork)))
    latency_ns = NS_PER_US * np.array(latency_us)
    return fit_family(*mixed_inputs(hardware, shape, work), latency_ns, np.arange(len(batches)))


def _batch(contexts: list[int], chunk: int, context: int) -> Batch:
    """Return decodes that each read so many positions, their own included, beside a chunk behind a context."""
    prefill = (chunk,) if chunk else ()
    return Batch((*((1,) * len(contexts)), *prefill), (*(max(c - 1, 0) for c in contexts), *((context,) if chunk else ())))


def _rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as handle:
            rows = list(csv.DictReader(handle))
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read ({error.strerror}); give a bundle's folder, as MODEL/tp1") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InvalidInputError(f"{path}: lacks the column {missing[0]}; give a bundle of LLMServingSim's profiler 1.0")
    return rows
