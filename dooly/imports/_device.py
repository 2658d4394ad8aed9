"""Make the data that ships for a device out of aiconfigurator's tables: facts, families, collectives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dooly.imports import _aiconfigurator as tables
from dooly.predict._domain import Reach
from dooly.predict._family import FamilyRegressor, fit_family
from dooly.predict._family_features import (
    decode_inputs,
    element_bytes,
    experts_inputs,
    latent_decode_inputs,
    latent_prefill_inputs,
    linear_inputs,
    prefill_inputs,
)
from dooly.predict._kinds import MARLIN, AttentionShape, Experts, LatentAttention, LinearLayer, families_of
from dooly.predict._marlin import fit_marlin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from dooly.predict._features import AttentionWork
    from dooly.predict._hardware import Hardware
    from dooly.predict._marlin import MarlinCosts

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    Points = tuple[Floats, Floats, Floats, Ints]
    LatentInputs = Callable[[Hardware, LatentAttention, AttentionWork], tuple[Floats, Floats]]
    Inputs = Callable[[Hardware, AttentionShape, AttentionWork], tuple[Floats, Floats]]

_LINEAR = ("bfloat16", "fp8", "fp8_block")
_PHASES = ("generation_attention", "context_attention")
_ATTENTION = (("bfloat16", None), ("bfloat16", 1), ("fp8", None), ("fp8", 1))
"""Element types of caches; beside each None for full attention, or any window."""
_LATENT = (("mla_generation_module", latent_decode_inputs), ("mla_context_module", latent_prefill_inputs))
"""Tables of latent attention, and what gives their features."""
_EXPERTS, _MARLIN = ("bfloat16", "fp8", "fp8_block", "mxfp4"), ("w4a16", "w4a16_mxfp4")
"""Element types of experts; the last go by blocks of rows."""
_BLOCKS, _SMALL_NS, _LAUNCHED = "fp8_block", 10_000, 0.95
"""Element type of products whose launches were timed; a small product, by the roofline; what share of such takes no longer."""
_BYTES_READ = 2
"""Of an element whose scale is computed."""


def build_device(folder: Path, out: Path, facts: Hardware) -> dict[str, FamilyRegressor | MarlinCosts]:
    """Write a device's data, and return its families by name.

    Args:
        folder: aiconfigurator's tables of one system.
        out: Folder to write to.
        facts: The device's facts; what its tables tell is filled in.

    Raises:
        InvalidInputError: A table is missing or lacks a column.
    """
    out.mkdir(parents=True, exist_ok=True)
    products = tables.linear_layers(folder)
    hardware = replace(
        facts,
        launch_ns=float(products.latency_ns.min()),
        moved_bytes_per_s=_moved_bytes_per_s(folder),
        reach=_reach(folder, float(products["m"].max())),
        launches_ns=_launches_ns(folder, facts),
    )
    hardware.write(out)
    payloads = {f"{operator}-{ranks}": np.stack([sizes, ns]) for operator, ranks, sizes, ns in tables.collectives(folder)}
    np.savez_compressed(out / "collectives.npz", **payloads)  # type: ignore[arg-type] # numpy's stub takes no mapping
    found = {name: fit_family(*points) for name, points in family_points(folder, hardware).items()}
    (linear,) = families_of(LinearLayer(1, 1, "bfloat16"))
    found |= {name: fit_family(*points) for name, points in latent_points(folder, hardware, found[linear]).items()}
    for name, regressor in found.items():
        regressor.save(out / f"{name}.cbm.xz")
    if (costs := marlin_costs(folder)) is None:
        return {**found}
    costs.write(out / f"{MARLIN}.json")
    return found | {MARLIN: costs}


def family_points(folder: Path, hardware: Hardware) -> dict[str, Points]:
    """Return roofline, features, latencies and configurations of every family in a system's tables, as `fit_family` takes them.

    Args:
        folder: aiconfigurator's tables of one system.
        hardware: The system's device.

    Raises:
        InvalidInputError: A table is missing or lacks a column.
    """
    found: dict[str, Points] = {}
    for dtype in _LINEAR:
        if len(rows := tables.linear_layers(folder, dtype)):
            found |= {name: _linear_points(hardware, rows, dtype) for name in families_of(LinearLayer(1, 1, dtype))}
    for dtype, window in _ATTENTION:
        names = families_of(AttentionShape(1, 1, 1, dtype, window))
        for name, table, inputs in zip(names, _PHASES, (decode_inputs, prefill_inputs), strict=True):
            if len(rows := tables.attention(folder, table, dtype, windowed=window is not None)):
                found[name] = _attention_points(hardware, inputs, rows, dtype)
    for dtype in _EXPERTS:
        if len(rows := tables.experts(folder, dtype)):
            found |= {name: _experts_points(hardware, rows, dtype) for name in families_of(Experts(1, 1, 1, 1, 1, dtype))}
    return found


def latent_points(folder: Path, hardware: Hardware, linear: FamilyRegressor) -> dict[str, Points]:
    """Return roofline, features, latencies and configurations of latent attention, by family, as `fit_family` takes them.

    Tables time a module whole. What a trace has as operations of their own is taken off: its products by the family of such, what
    moves bytes alone by these.

    Args:
        folder: aiconfigurator's tables of one system.
        hardware: The system's device.
        linear: The family of products in bfloat16.

    Raises:
        InvalidInputError: A table lacks a column.
    """
    found: dict[str, Points] = {}
    for dtype in ("bfloat16", "fp8"):
        shape = LatentAttention(
            1, tables.LATENT.rank, tables.LATENT.rope_size, tables.LATENT.nope_size, tables.LATENT.value_size, dtype
        )
        parts = zip(families_of(shape), _LATENT, strict=True)
        for name, (table, inputs) in ((name, part) for name, part in parts if tables.has_table(folder, part[0])):
            if len(rows := tables.latent_modules(folder, table, dtype)):
                found[name] = _latent_points(hardware, linear, shape, inputs, rows)
    return found


def _latent_points(
    hardware: Hardware, linear: FamilyRegressor, shape: LatentAttention, inputs: LatentInputs, rows: tables.Columns
) -> Points:
    heads, parts = np.asarray(rows["num_heads"], dtype=np.int64), []
    for number in np.unique(heads):
        own = rows.kept(heads == number)
        batches = tables.batches(own)
        m = batches.num_tokens.astype(np.float64)
        around = np.zeros(len(m))
        for n, k in tables.LATENT.projections(int(number)):
            around += linear.predict_ns(*linear_inputs(hardware, m, np.full_like(m, n), np.full_like(m, k), _BYTES_READ))
        for elements in tables.LATENT.moved(int(number)):
            around += hardware.launch_ns + 1e9 * _BYTES_READ * elements * m / hardware.moved_bytes_per_s
        left = np.maximum(own.latency_ns - around, hardware.launch_ns)
        parts.append(
            (*inputs(hardware, replace(shape, num_heads=int(number)), batches.attention(None)), left, np.full(len(m), number))
        )
    roofline, features, latency_ns, configurations = (np.concatenate(amounts) for amounts in zip(*parts, strict=True))
    return roofline, features, latency_ns, configurations


def _launches_ns(folder: Path, hardware: Hardware) -> dict[str, float]:
    """Return what products in blocks take whose work is next to nothing, by family in nanoseconds; nothing without such."""
    rows = tables.linear_layers(folder, _BLOCKS)
    m, n, k = (np.asarray(rows[name], dtype=np.float64) for name in ("m", "n", "k"))
    roofline, _ = linear_inputs(hardware, m, n, k, element_bytes(_BLOCKS))
    small = rows.latency_ns[roofline < _SMALL_NS]
    return {name: float(np.quantile(small, _LAUNCHED)) for name in families_of(LinearLayer(1, 1, _BLOCKS)) if len(small)}


def _reach(folder: Path, num_tokens: float) -> Reach:
    """Return how far full attention over a cache in bfloat16 was measured, and products over so many tokens."""
    decodes, prefills = (
        tables.batches(tables.attention(folder, table, "bfloat16", windowed=False)).attention(None) for table in _PHASES
    )
    return Reach(float(decodes.decode_kv_tokens.max()), float(prefills.prefill_pairs.max()), num_tokens)


def _linear_points(hardware: Hardware, rows: tables.Columns, dtype: str) -> Points:
    """Return roofline, features, latencies and configurations of products, as `fit_family` takes them."""
    m, n, k = (np.asarray(rows[name], dtype=np.float64) for name in ("m", "n", "k"))
    return *linear_inputs(hardware, m, n, k, element_bytes(dtype)), rows.latency_ns, _numbered(n, k)


def _attention_points(hardware: Hardware, inputs: Inputs, rows: tables.Columns, dtype: str) -> Points:
    """Return roofline, features, latencies and configurations of attention, as `fit_family` takes them."""
    names = ("num_heads", "num_key_value_heads", "head_dim", "window_size")
    sizes = [np.asarray(rows[name], dtype=np.int64) for name in names]
    configurations = _numbered(*sizes)
    places, found = [], []
    for number in np.unique(configurations):
        place = np.flatnonzero(configurations == number)
        heads, kv_heads, size, window = (int(values[place[0]]) for values in sizes)
        shape = AttentionShape(heads, kv_heads, size, dtype, window or None)
        places.append(place)
        found.append(inputs(hardware, shape, tables.batches(rows.kept(configurations == number)).attention(shape.window)))
    order = np.argsort(np.concatenate(places))
    roofline, features = (np.concatenate(parts)[order] for parts in zip(*found, strict=True))
    return roofline, features, rows.latency_ns, configurations


def _experts_points(hardware: Hardware, rows: tables.Columns, dtype: str) -> Points:
    """Return roofline, features, latencies and configurations of mixtures of experts, as `fit_family` takes them."""
    found = [(place, *experts_inputs(hardware, shape, m)) for shape, place, m in _layouts(rows, dtype)]
    order = np.argsort(np.concatenate([place for place, *_ in found]))
    roofline, features = (np.concatenate([each[part] for each in found])[order] for part in (1, 2))
    # A model's own layouts are no configurations apart: all are held out with it.
    models = _numbered(*(rows[name] for name in ("hidden_size", "inter_size", "topk", "num_experts")))
    return roofline, features, rows.latency_ns, models


def marlin_costs(folder: Path) -> MarlinCosts | None:
    """Return what experts of four-bit weights cost by Marlin in a system's tables; None where these have none.

    Raises:
        InvalidInputError: A table is missing or lacks a column.
    """
    known = [(dtype, tables.experts(folder, dtype)) for dtype in _MARLIN]
    found = [(shape, m, rows.latency_ns[place]) for dtype, rows in known for shape, place, m in _layouts(rows, dtype)]
    return fit_marlin(found) if found else None


def _layouts(rows: tables.Columns, dtype: str) -> list[tuple[Experts, Ints, Floats]]:
    """Return each layout of experts over ranks with its rows and their tokens."""
    names = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "moe_ep_size")
    hidden, inner, top_k, number, tensor, expert = (np.asarray(rows[name], dtype=np.int64) for name in names)
    sizes = (hidden, inner // tensor, top_k, number, number // expert)
    tokens, layouts = np.asarray(rows["num_tokens"], dtype=np.float64), _numbered(*sizes)
    places = [np.flatnonzero(layouts == layout) for layout in np.unique(layouts)]
    found = []
    for place in places:
        width, within, chosen, all_experts, own = (int(values[place[0]]) for values in sizes)
        found.append((Experts(width, within, chosen, all_experts, own, dtype), place, tokens[place]))
    return found


def _numbered(*columns: npt.NDArray[Any]) -> Ints:
    """Return the number of each row's combination of values."""
    return np.asarray(np.unique(np.stack(columns), axis=1, return_inverse=True)[1].ravel(), dtype=np.int64)


def _moved_bytes_per_s(folder: Path) -> float:
    """Return the bandwidth that reading reaches where scales of activations are computed, over the largest of them."""
    rows = tables.read_table(folder, "computescale", ("m", "k"))
    moved = _BYTES_READ * np.asarray(rows["m"], dtype=np.float64) * rows["k"]
    largest = np.argsort(moved)[-10:]
    return float(np.median(1e9 * moved[largest] / rows.latency_ns[largest]))
