"""Bundles for LLMServingSim (casys-kaist/LLMServingSim): what each layer of one rank of a model takes, in microseconds.

The files are those of its profiler 1, whose place is `profiler/perf/<hardware>/<model>/<variant>/`; `dooly.imports` says what
each holds, where it reads them. A layer's time holds the gap to the next kernel, since LLMServingSim has none: `gap_us`
in `meta.yaml` says how much. Collectives are left to its network.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from dooly.adapters._grid import Limits, attention_points, sizes_up_to
from dooly.adapters._operation_prices import attention_ns, sized_ns, the_attention
from dooly.adapters._result import ExportResult, limit_notes, write_file
from dooly.errors import UnsupportedModelError
from dooly.imports import BUNDLE_WORDS, TIMED_TOGETHER
from dooly.predict._kinds import Experts, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]

TOOL = "llmservingsim"
_VARIANTS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_FILES = {"num_tokens": ("dense.csv", "tokens"), "num_reqs": ("per_sequence.csv", "sequences")}


def export_llmservingsim(latency: LatencyModel, model: ModelSource, serving: ServingConfig, folder: Path) -> ExportResult:
    """Write a bundle for LLMServingSim's simulator.

    Args:
        latency: The latency model.
        model: The model, by its configuration.
        serving: The settings that the latency model was made with; their limits are those of the bundle.
        folder: Where `meta.yaml` goes, and below it `tp<ranks>/`; a bundle of other ranks there stays.

    Raises:
        UnsupportedModelError: The model has experts, several kinds of attention, or another element type than 16 or 32 bits.
        InvalidInputError: A file cannot be written.
    """
    _refuse(latency, serving)
    limits, attention = Limits.of(latency, serving), the_attention(latency, TOOL)
    ranks = folder / f"tp{serving.tensor_parallel_size}"
    written = [_write_layers(latency, limits, dim, ranks, serving) for dim in _FILES]
    points = attention_points(limits)
    times = attention_ns(latency, attention, points)
    rows = [
        f"{p.chunk},{p.chunk_context},{p.num_decodes},{p.decode_context},{ns / 1e3:.6g}"
        for p, ns in zip(points, times, strict=True)
    ]
    _write(ranks / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", rows)
    degrees = sorted({int(found.name[2:]) for found in folder.glob("tp*") if found.name[2:].isdigit()})
    write_file(folder / "meta.yaml", _meta(latency, model, serving, limits, degrees))
    files = (*(ranks / name for name, _ in _FILES.values()), ranks / "attention.csv", folder / "meta.yaml")
    return ExportResult(files, sum(written) + len(rows), _notes(latency))


def _refuse(latency: LatencyModel, serving: ServingConfig) -> None:
    """Refuse what a bundle has no place for."""
    if serving.dtype not in _VARIANTS or latency.environment.quantization is not None:
        what = latency.environment.quantization or serving.dtype
        raise UnsupportedModelError(f"--format {TOOL}: no variant of {what}; export one in {', '.join(_VARIANTS)}")
    if experts := [op for op in latency.traced.operations if isinstance(kind_of(op), Experts)]:
        raise UnsupportedModelError(
            f"--format {TOOL}: {experts[0].module} is a mixture of experts, whose times LLMServingSim looks up by experts "
            "reached, which is not what was measured; export a dense model"
        )


def _write_layers(latency: LatencyModel, limits: Limits, dim: str, folder: Path, serving: ServingConfig) -> int:
    """Write the layers that one dimension sizes, and return how many rows."""
    name, column = _FILES[dim]
    most = limits.num_tokens if dim == "num_tokens" else limits.num_reqs
    sizes = sizes_up_to(most, serving.cudagraph_capture_sizes if dim == "num_tokens" else ())
    layers: dict[str, list[tuple[TracedOperation, Floats]]] = {}
    for operation, latency_ns in sized_ns(latency, dim, sizes, limits.context):
        layers.setdefault(BUNDLE_WORDS.get(operation.name, operation.name), []).append((operation, latency_ns))
    rows = []
    for word, runs in sorted(layers.items()):
        total_ns = np.sum([operation.count * latency_ns for operation, latency_ns in runs], axis=0)
        # Layers of one name run one after another, each at the mean of all; what a name stands for together runs once.
        kinds = {operation.name for operation, _ in runs} if word == TIMED_TOGETHER else {word}
        times_us = total_ns / sum(operation.count for operation, _ in runs) * len(kinds) / 1e3
        rows += [f"{word},{size},{us:.6g}" for size, us in zip(sizes.tolist(), times_us.tolist(), strict=True)]
    _write(folder / name, f"layer,{column},time_us", rows)
    return len(rows)


def _write(path: Path, header: str, rows: Sequence[str]) -> None:
    write_file(path, "\n".join([header, *rows, ""]))


def _meta(latency: LatencyModel, model: ModelSource, serving: ServingConfig, limits: Limits, degrees: Sequence[int]) -> str:
    """Return what `meta.yaml` says: how this was measured, and by whom; a JSON string is one of YAML."""
    environment = latency.environment
    source = latency.hardware.source if latency.hardware is not None else environment.source or "measured with Dooly"
    config = model.config
    return "\n".join(
        [
            "profiler_version: 1.0.0",
            f"vllm_version: {json.dumps(environment.engine_version)}",
            f"gpu: {json.dumps(environment.device)}",
            f"architecture: {json.dumps(config.get('model_type', 'unknown'))}",
            f"model: {json.dumps(model.name)}",
            f"variant: {_VARIANTS[serving.dtype]}",
            f"tp_degrees: [{', '.join(map(str, degrees))}]",
            f"source: {json.dumps(source)}",
            f"gap_us: {latency.gap_ns / 1e3:g}",
            "engine_effective:",
            f"  enforce_eager: {str(environment.execution_mode == 'eager').lower()}",
            f"  tensor_parallel_size: {serving.tensor_parallel_size}",
            f"  block_size: {latency.block_size}",
            f"  max_num_batched_tokens: {limits.num_tokens}",
            f"  max_num_seqs: {limits.num_reqs}",
            "skew_profile:",
            "  enabled: false",
            "skew_fit:",
            "  enabled: false",
            "",
        ]
    )


def _notes(latency: LatencyModel) -> tuple[str, ...]:
    """Return what a bundle has no place for."""
    notes = ["attention goes by the decodes' mean context; how unequal they are is not told"]
    if not latency.is_sum_of_operations:
        notes.append("what layers and the engine take beyond their operations is in no layer: LLMServingSim's steps are shorter")
    if latency.host is not None:
        notes.append("what the host takes to launch steps is in no layer")
    return (*notes, *limit_notes(latency))
