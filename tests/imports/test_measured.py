"""What our own records add to the data of a device."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import Environment, JsonObject, Record, Store
from dooly.imports import carry_curves, recorded_sizes, write_measured
from dooly.predict._device_latencies import DeviceLatencies
from dooly.tracing import TracedModel, TracedOperation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def table(operation: Callable[..., TracedOperation]) -> TracedModel:
    """A norm, an activation, attention and a linear layer, as the CPU's platform traces them."""
    moved = {"request_flops": "0", "request_bytes": "8*num_tokens"}
    return TracedModel(
        "m",
        {},
        (
            operation("n", "layers.0.norm", family="norms", **moved),
            operation("a", "layers.0.act", family="activations", **moved),
            operation("l", "layers.0.up", request_flops="2*num_tokens"),
            operation("t", "layers.0.attn", stateful=True, request_dims=("num_tokens", "kv_tokens")),
            operation("x", "layers.0.gone"),
        ),
    )


@pytest.fixture
def recorded(table: TracedModel, tmp_path: Path) -> tuple[Store, TracedModel, Environment]:
    """Records of the same model on a GPU, where the activation is another operator and one operation is not run."""
    environment = Environment(
        device="G",
        device_kind="cuda",
        driver="1",
        torch_version="2",
        engine="vllm",
        engine_version="3",
        attention_backend="F",
        dtype="bfloat16",
        kv_cache_dtype="auto",
        block_size=16,
        execution_mode="eager",
        quantization=None,
        num_threads=None,
    )
    norm, activation, linear, attention, _ = table.operations
    traced = replace(table, operations=(norm, replace(activation, signature="b"), linear, attention))
    store = Store.open(str(tmp_path / "db"), "a")
    store.write_document("environments", environment.digest, environment.to_json())
    for signature, factor in (("n", 10), ("b", 20), ("l", 30), ("t", 40)):
        samples = {size: np.array([factor * size] * 3) for size in (4, 1, 2)}
        store.write(*(Record(signature, environment.digest, JsonObject({"d0": n}), found) for n, found in samples.items()))
    return store, traced, environment


def test_records_go_under_the_tables_own_signatures(table: TracedModel, recorded: tuple[Store, TracedModel, Environment]) -> None:
    """By signature, or else by module; attention is left out, and what was not run is not there."""
    sizes = recorded_sizes(*recorded, table)
    assert {signature: latency_ns.tolist() for signature, (_, latency_ns) in sizes.items()} == {
        "n": [10, 20, 40],
        "a": [20, 40, 80],
        "l": [30, 60, 120],
    }
    assert all(at.tolist() == [1, 2, 4] for at, _ in sizes.values())


def test_what_moves_bytes_alone_goes_under_its_family_too(
    table: TracedModel, recorded: tuple[Store, TracedModel, Environment], tmp_path: Path
) -> None:
    """A device reads back both: sizes by signature, and by family the bytes that eight a token are."""
    (tmp_path / "hardware.json").write_text((files("dooly") / "data" / "h200" / "hardware.json").read_text())
    write_measured(recorded_sizes(*recorded, table), {op.signature: op for op in table.operations}, tmp_path)
    device = DeviceLatencies(tmp_path)
    assert device.measured.keys() == {"n", "a", "l"}
    assert device.curves.keys() == {"norms", "activations"}
    ((traffic, latency_ns),) = device.curves["norms"].members
    assert (traffic.tolist(), latency_ns.tolist()) == ([8, 16, 32], [10, 20, 40])


def test_curves_are_carried_to_a_device_of_slower_memory(
    table: TracedModel, recorded: tuple[Store, TracedModel, Environment], tmp_path: Path
) -> None:
    """What a cache holds takes as long there, the rest longer; none of it was measured there, and what was goes first."""
    (tmp_path / "hardware.json").write_text((files("dooly") / "data" / "h100" / "hardware.json").read_text())
    write_measured(recorded_sizes(*recorded, table), {op.signature: op for op in table.operations}, tmp_path)
    carry_curves(tmp_path, tmp_path, 1.5, 16)
    own = DeviceLatencies(tmp_path).curves["norms"]
    (tmp_path / "curves.npz").unlink()
    carried = DeviceLatencies(tmp_path).curves["norms"]
    assert own.source == "family"
    assert carried.source == "estimated"
    assert carried.at(np.array([8.0, 16.0, 32.0])).tolist() == pytest.approx([10, 20, 60])
