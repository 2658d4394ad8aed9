"""Families fitted to records: of each kind of operation over the configurations that a store knows."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from dooly.predict._family import FamilyRegressor, fit_family
from dooly.predict._family_features import (
    decode_inputs,
    element_bytes,
    experts_inputs,
    linear_inputs,
    mixed_inputs,
    prefill_inputs,
)
from dooly.predict._features import AttentionWork

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.predict._hardware import Hardware
    from dooly.predict._kinds import AttentionShape, Experts, LinearLayer

    Floats = npt.NDArray[np.float64]

_MANY = 5000
"""Points."""


def linear_family(hardware: Hardware, known: Sequence[tuple[LinearLayer, Floats, Floats]]) -> FamilyRegressor:
    """Fit the family of linear layers to the sizes and latencies of each."""
    widths = [(np.full(len(m), float(layer.n)), np.full(len(m), float(layer.k))) for layer, m, _ in known]
    inputs = [
        linear_inputs(hardware, m, n, k, element_bytes(layer.dtype)) for (layer, m, _), (n, k) in zip(known, widths, strict=True)
    ]
    return _fit(inputs, [latency_ns for *_, latency_ns in known])


def experts_family(hardware: Hardware, known: Sequence[tuple[Experts, Floats, Floats]]) -> FamilyRegressor:
    """Fit the family of mixtures of experts to the sizes and latencies of each."""
    inputs = [experts_inputs(hardware, shape, m) for shape, m, _ in known]
    return _fit(inputs, [latency_ns for *_, latency_ns in known])


def attention_families(
    hardware: Hardware, known: Sequence[tuple[AttentionShape, AttentionWork, Floats]]
) -> tuple[FamilyRegressor, FamilyRegressor] | None:
    """Fit the families of decodes and of prefills to the batches and latencies of each shape, those of both kinds left out.

    Returns None where one of the two was not measured. Of a single shape each batch is a configuration when errors are judged.
    """
    found = []
    for inputs, others in ((decode_inputs, "num_prefills"), (prefill_inputs, "num_decodes")):
        pure = [getattr(work, others) == 0 for _, work, _ in known]
        parts = [
            (inputs(hardware, shape, _rows(work, rows)), latency_ns[rows])
            for (shape, work, latency_ns), rows in zip(known, pure, strict=True)
            if rows.any()
        ]
        if not parts:
            return None
        found.append(_fit([part for part, _ in parts], [latency_ns for _, latency_ns in parts]))
    decodes, prefills = found
    return decodes, prefills


def mixed_attention(hardware: Hardware, shape: AttentionShape, work: AttentionWork, latency_ns: Floats) -> FamilyRegressor:
    """Fit attention of one shape over batches of every kind; each batch is a configuration when errors are judged."""
    inputs = mixed_inputs(hardware, shape, work)
    return fit_family(*inputs, latency_ns, np.arange(len(latency_ns)), _judges(len(latency_ns)))


def _fit(inputs: Sequence[tuple[Floats, Floats]], latencies_ns: Sequence[Floats]) -> FamilyRegressor:
    """Fit a family; its configurations are the operations, or of a single one its points."""
    roofline, features = (np.concatenate(parts) for parts in zip(*inputs, strict=True))
    sizes = [len(part) for part in latencies_ns]
    configurations = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else np.arange(sizes[0])
    return fit_family(roofline, features, np.concatenate(latencies_ns), configurations, _judges(len(roofline)))


def _judges(num_points: int) -> int:
    """Return how many quarters judge a fit: of many points one says enough, and whoever asks waits for all of them."""
    return 1 if num_points > _MANY else 4


def _rows(work: AttentionWork, mask: npt.NDArray[np.bool_]) -> AttentionWork:
    return AttentionWork(*(getattr(work, field.name)[mask] for field in fields(AttentionWork)))
