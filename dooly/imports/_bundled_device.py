"""Make the data that ships for a device out of LLMServingSim's bundles: tables of operations, attention fitted to its rows."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np

from dooly.imports._llmservingsim import read_layers
from dooly.imports._measured import write_measured
from dooly.predict._family import fit_family
from dooly.predict._family_features import mixed_inputs
from dooly.predict._features import AttentionWork, BatchArrays
from dooly.predict._kinds import AttentionShape, kind_of
from dooly.predict._operation import OperationWork

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from dooly.imports._reading import Placed, Reading
    from dooly.predict._family import FamilyRegressor
    from dooly.predict._hardware import Hardware
    from dooly.tracing import TracedModel

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
    sizes, found = {}, {}
    for folder, traced in bundles.items():
        reading = read_layers(folder, traced)
        attention: dict[str, list[Placed]] = {}
        for placed in reading.placed:
            signature = placed.operation.signature
            if isinstance(kind_of(placed.operation), AttentionShape):
                attention.setdefault(signature, []).append(placed)
            else:
                arrays = BatchArrays.of(placed.batches)
                sizes[signature] = OperationWork(placed.operation).sizes(arrays), placed.latency_ns
        found[folder] = reading, {signature: fit_attention(facts, rows) for signature, rows in attention.items()}
    shortest = min(float(latency_ns.min()) for _, latency_ns in sizes.values())
    replace(facts, launch_ns=shortest).write(out)
    write_measured(sizes, {op.signature: op for traced in bundles.values() for op in traced.operations}, out)
    for _, regressors in found.values():
        for signature, regressor in regressors.items():
            regressor.save(out / f"attention-{signature}.cbm.xz")
    return found


def fit_attention(hardware: Hardware, rows: list[Placed]) -> FamilyRegressor:
    """Fit attention over all batches of a bundle; each batch is a configuration of its own when errors are judged."""
    batches = [batch for placed in rows for batch in placed.batches]
    latency_ns = np.concatenate([placed.latency_ns for placed in rows])
    parts = [BatchArrays.of(batches[i : i + _CHUNK]).attention(None) for i in range(0, len(batches), _CHUNK)]
    work = AttentionWork(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(AttentionWork)))
    kind = kind_of(rows[0].operation)
    assert isinstance(kind, AttentionShape)
    return fit_family(*mixed_inputs(hardware, kind, work), latency_ns, np.arange(len(batches)))
