"""Make the data that ships for a device out of LLMServingSim's bundles: tables of operations, attention fitted to its rows."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.imports._llmservingsim import read_layers
from dooly.imports._measured import write_measured
from dooly.predict._domain import Reach
from dooly.predict._family import fit_family
from dooly.predict._family_features import mixed_inputs
from dooly.predict._features import AttentionWork, BatchArrays
from dooly.predict._kinds import AttentionShape, LinearLayer, kind_of
from dooly.predict._operation import OperationWork
from dooly.predict._recorded_families import attention_families, linear_family

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from dooly.imports._reading import Placed, Reading
    from dooly.predict._family import FamilyRegressor
    from dooly.predict._hardware import Hardware
    from dooly.tracing import TracedModel

    Floats = npt.NDArray[np.float64]

_CHUNK = 4096
"""Batches that are made into arrays at once."""


def build_bundled_device(
    bundles: Mapping[Path, TracedModel], out: Path, facts: Hardware
) -> dict[Path, tuple[Reading, dict[str, FamilyRegressor]]]:
    """Write the data of a device out of bundles, and return what each said, with its regressors of attention by signature.

    Args:
        bundles: The folder of a bundle for one number of ranks, each with the table of its model over as many.
        out: Folder to write to.
        facts: The device's facts; the launch time is filled in.

    Raises:
        InvalidInputError: A bundle lacks a file or a column.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes, found, shortest, reaches = {}, {}, [], []
    for folder, traced in bundles.items():
        reading = read_layers(folder, traced)
        together: dict[str, Floats] = {}
        attention: dict[str, list[Placed]] = {}
        for placed in reading.placed:
            signature = placed.operation.signature
            if isinstance(kind_of(placed.operation), AttentionShape):
                attention.setdefault(signature, []).append(placed)
            else:
                arrays = BatchArrays.of(placed.batches)
                sizes[signature] = OperationWork(placed.operation).sizes(arrays), placed.latency_ns
                # A row may time several operations, which share it by what they write: none took so little by itself.
                together[placed.rows] = together.get(placed.rows, 0.0) + placed.latency_ns
        shortest.append(min(float(latency_ns.min()) for latency_ns in together.values()))
        reaches += [_reach(rows) for rows in attention.values()]
        found[folder] = reading, {signature: fit_attention(facts, rows) for signature, rows in attention.items()}
    per_token = [op.signature for traced in bundles.values() for op in traced.operations if op.request_dims == ("num_tokens",)]
    most = min(float(sizes[signature][0].max()) for signature in per_token if signature in sizes)
    reach = Reach(min(r.decode_kv_tokens for r in reaches), min(r.prefill_pairs for r in reaches), most)
    replace(facts, launch_ns=min(shortest), reach=reach).write(out)
    write_measured(sizes, {op.signature: op for traced in bundles.values() for op in traced.operations}, out)
    for _, regressors in found.values():
        for signature, regressor in regressors.items():
            regressor.save(out / f"attention-{signature}.cbm.xz")
    for name, regressor in families_of_bundles(facts, [reading.placed for reading, _ in found.values()]).items():
        regressor.save(out / f"{name}.cbm.xz")
    return found


def families_of_bundles(hardware: Hardware, bundles: Sequence[Sequence[Placed]]) -> dict[str, FamilyRegressor]:
    """Fit the families of linear layers and of attention to what bundles measured of each, by name: few widths, few heads."""
    products: list[tuple[LinearLayer, Floats, Floats]] = []
    attention: dict[AttentionShape, list[Placed]] = {}
    for placed in (placed for bundle in bundles for placed in bundle):
        kind = kind_of(placed.operation)
        if isinstance(kind, LinearLayer):
            products.append((kind, OperationWork(placed.operation).sizes(BatchArrays.of(placed.batches)), placed.latency_ns))
        elif isinstance(kind, AttentionShape):
            attention.setdefault(kind, []).append(placed)
    latencies = {kind: np.concatenate([placed.latency_ns for placed in rows]) for kind, rows in attention.items()}
    fitted = attention_families(hardware, [(kind, _work(rows), latencies[kind]) for kind, rows in attention.items()])
    names = ("linear", *(() if fitted is None else ("decodes", "prefills")))
    return dict(zip(names, (linear_family(hardware, products), *(fitted or ())), strict=True))


def _reach(rows: list[Placed]) -> Reach:
    """Return how far attention was measured."""
    work = _work(rows)
    return Reach(float(work.decode_kv_tokens.max()), float(work.prefill_pairs.max()))


def _work(rows: list[Placed]) -> AttentionWork:
    batches = [batch for placed in rows for batch in placed.batches]
    parts = [BatchArrays.of(batches[i : i + _CHUNK]).attention(None) for i in range(0, len(batches), _CHUNK)]
    return AttentionWork(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(AttentionWork)))


def fit_attention(hardware: Hardware, rows: list[Placed]) -> FamilyRegressor:
    """Fit attention over all batches of a bundle; each batch is a configuration of its own when errors are judged."""
    latency_ns, work = np.concatenate([placed.latency_ns for placed in rows]), _work(rows)
    kind = kind_of(rows[0].operation)
    assert isinstance(kind, AttentionShape)
    return fit_family(*mixed_inputs(hardware, kind, work), latency_ns, np.arange(len(latency_ns)))
