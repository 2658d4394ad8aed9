"""Coefficients for BLIS (inference-sim/inference-sim, Apache-2.0): its trained-physics model, fitted to Dooly's steps.

BLIS prices a step as a sum of ten terms of a roofline, each times a coefficient of at least 0: computing prompts and decodes,
writing and reading the KV cache, reading the weights, all-reduces, and a constant, one a layer and one a request. These here are
of least relative squares over steps of prompts, of decodes and of both; times are microseconds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.adapters._grid import AttentionPoint, Limits, batches_of, grown
from dooly.adapters._model_sizes import KV_HEADS, sizes_of
from dooly.adapters._result import ExportResult, limit_notes, write_file
from dooly.adapters._wall import wall_s
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.predict._kinds import Experts, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel

    Floats = npt.NDArray[np.float64]

TOOL = "blis"
_CACHE_BYTES = 2
"""Of an element of the KV cache, in BLIS."""
_WEIGHT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
_LONGEST, _MOST_READ = 16384, 1 << 21
"""Positions that a decode reads, and that all of a step do: servers hold no more."""
_COEFFICIENTS = 10
_PLACES = (0, 1, 2, 3, 5, 6, 8, 9)
"""Places of the fitted among BLIS's ten, in the order of `terms`: those of layers, like a constant, and of experts stay 0."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """What BLIS knows of a model and of a device."""

    layers: int
    width: int
    heads: int
    kv_width: int
    inner: int
    ranks: int
    element_bytes: int
    flops_per_us: float
    bytes_per_us: float

    def terms(self, points: Sequence[AttentionPoint]) -> Floats:
        """Return BLIS's terms in each step, in microseconds, shape (num_points, 8)."""
        layer_flops = 2 * self.width * (2 * self.width + 2 * self.kv_width) + 6 * self.width * self.inner
        weights = self.layers * self.width * (2 * self.width + 2 * self.kv_width + 3 * self.inner) * self.element_bytes
        cache = self.layers * 2 * self.kv_width / self.ranks * _CACHE_BYTES
        # Attention is over the rank's heads, as projections are over its part of the widths.
        attention = self.layers * 4 * self.width / self.ranks
        rows = []
        for chunk, before, decodes, context in points:
            read = decodes * max(context - 1, 0)
            tokens = chunk + decodes
            prompt = before + chunk
            rows.append(
                [
                    (self.layers * chunk * layer_flops / self.ranks + attention * chunk * (prompt + chunk / 2))
                    / self.flops_per_us,
                    (self.layers * decodes * layer_flops / self.ranks + attention * read) / self.flops_per_us,
                    weights / self.ranks / self.bytes_per_us,
                    2 * self.layers * tokens * self.width * self.element_bytes * 2 * (1 - 1 / self.ranks) / self.bytes_per_us,
                    decodes + (chunk > 0),
                    1.0,
                    cache * chunk / self.bytes_per_us,
                    cache * (read + decodes) / self.bytes_per_us,
                ]
            )
        return np.array(rows)


def export_blis(latency: LatencyModel, model: ModelSource, serving: ServingConfig, path: Path) -> ExportResult:
    """Write the options of BLIS's command line as JSON, coefficients among them, and beside it the device that they go with.

    Args:
        latency: The latency model.
        model: The model, by its configuration.
        serving: The settings that the latency model was made with.
        path: The file.

    Raises:
        UnsupportedModelError: The model has experts, another element type than 16 or 32 bits, or not the sizes of a Llama.
        InvalidInputError: The device's rates are not known, as those of a store's are not; or a file cannot be written.
    """
    shape, points = _shape(latency, model, serving), _points(Limits.of(latency, serving))
    betas, errors = _fit(shape.terms(points), 1e6 * wall_s(latency, batches_of(points)))
    median, p90 = np.percentile(errors, [50, 90])
    hardware = latency.hardware
    assert hardware is not None  # _shape has asked
    name, beside = hardware.name.upper(), path.with_suffix(".hardware.json")
    rates = {
        "TFlopsPeak": hardware.flops_per_s / 1e12,
        "TFlopsFP8": 0,
        "BwPeakTBs": hardware.memory_bytes_per_s / 1e12,
        "MemoryGiB": hardware.memory_bytes / 2**30,
    }
    options = {
        "latency-model": "trained-physics",
        "alpha-coeffs": "0,0,0",
        "beta-coeffs": ",".join(f"{beta:.6g}" for beta in betas),
        "hardware": name,
        "hardware-config": beside.name,
        "tp": serving.tensor_parallel_size,
    }
    error = {"median": float(median), "p90": float(p90), "steps": len(points)}
    facts = {"model": model.name, "options": options, "error": error, "source": hardware.source}
    write_file(path, json.dumps(facts, indent=2) + "\n")
    write_file(beside, json.dumps({name: rates}, indent=2) + "\n")
    note = f"BLIS's terms follow these steps within {median:.1%} in the median and {p90:.1%} for 90 %"
    notes = (note, "what a server takes beside its steps (alpha-coeffs) is left at 0", *limit_notes(latency))
    return ExportResult((path, beside), len(betas), notes)


def _fit(terms: Floats, steps_us: Floats) -> tuple[Floats, Floats]:
    """Return BLIS's ten coefficients, and how far each step is off by them, relative."""
    from scipy.optimize import nnls

    found, _residual = nnls(terms / steps_us[:, None], np.ones(len(steps_us)))
    betas = np.zeros(_COEFFICIENTS)
    betas[list(_PLACES)] = found
    return betas, np.abs(terms @ found / steps_us - 1)


def _points(limits: Limits) -> list[AttentionPoint]:
    """Return steps of a prompt, of decodes, and of both."""
    chunks, counts = grown(16, limits.num_tokens, 1.5), grown(1, limits.num_reqs, 1.5)
    contexts = grown(64, min(limits.context, _LONGEST), 2.0)
    decodes = [AttentionPoint(0, 0, count, context) for count in counts for context in contexts if count * context <= _MOST_READ]
    prompts = [AttentionPoint(chunk, 0, 0, 0) for chunk in chunks if chunk <= limits.context]
    both = [
        AttentionPoint(chunk, 0, count, context)
        for chunk in chunks[::2]
        for count in counts[::2]
        for context in contexts[::2]
        if count * context <= _MOST_READ
        and chunk + count <= limits.num_tokens
        and count < limits.num_reqs
        and chunk <= limits.context
    ]
    return [*decodes, *prompts, *both]


def _shape(latency: LatencyModel, model: ModelSource, serving: ServingConfig) -> _Shape:
    """Return what BLIS would know."""
    hardware = latency.hardware
    if hardware is None:
        raise InvalidInputError(f"--format {TOOL}: the rates of a store's device are not known; use --hardware")
    if any(isinstance(kind_of(op), Experts) for op in latency.traced.operations):
        raise UnsupportedModelError(f"--format {TOOL}: {model.name} is a mixture of experts; export a dense model")
    if serving.dtype not in _WEIGHT_BYTES or latency.environment.quantization is not None:
        what = latency.environment.quantization or serving.dtype
        raise UnsupportedModelError(f"--format {TOOL}: {what} is not fitted; export a model in {', '.join(_WEIGHT_BYTES)}")
    layers, width, heads, kv_heads, inner = sizes_of(
        model, TOOL, "num_hidden_layers", "hidden_size", "num_attention_heads", KV_HEADS, "intermediate_size"
    )
    return _Shape(
        layers,
        width,
        heads,
        kv_heads * (width // heads),
        inner,
        serving.tensor_parallel_size,
        _WEIGHT_BYTES[serving.dtype],
        hardware.flops_per_s / 1e6,
        hardware.memory_bytes_per_s / 1e6,
    )
