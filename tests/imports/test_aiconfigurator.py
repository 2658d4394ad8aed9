"""Tables of aiconfigurator: which rows are read, in which units, and what becomes of a device."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dooly.errors import InvalidInputError
from dooly.imports import _aiconfigurator as tables
from dooly.imports import build_device
from dooly.predict import Hardware
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._kinds import Collective

if TYPE_CHECKING:
    from pathlib import Path

FACTS = Hardware("made-up", "NVIDIA Made Up", 80 << 30, 3e12, 1e15, 100, 3e12, 0.0, "vllm 0.24.0", "made up")
SIZES = (256, 512, 1024, 2048)
FA3 = "vllm_flash_attn_fa3"


def _write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}_perf.parquet")


def _attention(kernel: str, window: int, **sizes: int) -> dict[str, Any]:
    heads = {"num_heads": 8, "num_key_value_heads": 2, "head_dim": 64} | sizes
    work = heads["batch_size"] * heads["isl"] * (heads["isl"] + heads["step"]) * heads["num_heads"]
    facts = {"window_size": window, "kv_cache_dtype": "bfloat16", "kernel_source": kernel}
    return heads | facts | {"latency": 0.005 + work / 1e9}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables of a made-up device: each kind of row that is read, and beside it one that is not."""
    products = [
        {"gemm_dtype": dtype, "m": m, "n": n, "k": k, "latency": scale * (0.004 + m * n * k / 1e12)}
        for dtype, scale in (("bfloat16", 1), ("fp8", 0.5))
        for m in (1, 8, 64, 512)
        for n in SIZES
        for k in SIZES
    ]
    _write(tmp_path, "gemm", products)
    shapes = [(heads, kv) for heads in (4, 8, 16, 32) for kv in (1, 2, 4)]
    for name, isl, steps in (("context_attention", (1, 64, 512, 2048), (0,)), ("generation_attention", (1,), (15, 255, 4095))):
        rows = [
            _attention(FA3, 0, batch_size=b, isl=i, step=s, num_heads=h, num_key_value_heads=kv)
            for b in (1, 4, 16)
            for i in isl
            for s in steps
            for h, kv in shapes
        ]
        unread = [_attention(FA3, 128, batch_size=1, isl=2, step=0), _attention("other", 0, batch_size=1, isl=2, step=0)]
        _write(tmp_path, name, rows + unread)
    mixtures = [
        {"num_tokens": t, "hidden_size": h, "inter_size": i, "topk": 2, "num_experts": 8, "moe_tp_size": 2, "moe_ep_size": 1}
        | {"moe_dtype": dtype, "distribution": spread, "latency": 0.01 + t * h * i / 1e11}
        for t in (1, 16, 256)
        for h in (512, 1024, 2048)
        for i in (512, 1024)
        for dtype, spread in (("bfloat16", "balanced"), ("bfloat16", "power_law_1.2"), ("fp8", "balanced"))
    ]
    _write(tmp_path, "moe", mixtures)
    messages = [128, 1024, 8192]
    reduce = [
        {"num_gpus": p, "message_size": m, "backend": b, "op_name": "all_reduce", "latency": 0.004 * p + m / 1e6}
        for p in (2, 4)
        for m in reversed(messages)
        for b in ("vllm_graph", "vllm_eager")
    ]
    _write(tmp_path, "custom_allreduce", reduce)
    gather = [
        {"num_gpus": 2, "message_size": m, "nccl_dtype": "half", "op_name": o, "latency": 0.01}
        for m in messages
        for o in ("all_gather", "reduce_scatter", "alltoall")
    ]
    _write(tmp_path, "nccl", gather)
    _write(tmp_path, "computescale", [{"m": m, "k": 4096, "latency": m * 4096 * 2 / 2e12 * 1e3} for m in range(1, 30)])
    return tmp_path


def test_milliseconds_become_nanoseconds_of_bfloat16_rows(folder: Path) -> None:
    """Eight-bit rows are left out."""
    rows = tables.linear_layers(folder)
    assert len(rows.latency_ns) == 4 * len(SIZES) ** 2
    assert rows.latency_ns.min() == pytest.approx(4000 + 256 * 256 / 1e6)


def test_attention_rows_are_batches(folder: Path) -> None:
    """Prompts of one token, windows and other kernels are left out; each row is its batch."""
    rows, batches = tables.prefills(folder)
    assert set(np.unique(batches.new)) == {0, 64, 512, 2048}
    assert batches.num_reqs.tolist() == rows["batch_size"].tolist()
    _, decodes = tables.decodes(folder)
    assert set(np.unique(decodes.new)) == {0, 1}
    assert decodes.attention(None).decode_kv_tokens.max() == 16 * 4096


def test_collectives_are_sorted_by_bytes(folder: Path) -> None:
    """Elements of two bytes; the engine's own all-reduce inside graphs, the others from NCCL."""
    found = {(operator, ranks): (sizes.tolist(), ns.tolist()) for operator, ranks, sizes, ns in tables.collectives(folder)}
    assert set(found) == {("all_reduce", 2), ("all_reduce", 4), ("all_gather", 2), ("reduce_scatter", 2)}
    sizes, latency_ns = found["all_reduce", 4]
    assert sizes == [256, 2048, 16384]
    assert latency_ns == pytest.approx([16128, 17024, 24192])


def test_a_device_is_built_and_read(folder: Path, tmp_path: Path) -> None:
    """Facts that the tables tell are filled in, families know how far off they are, collectives are there."""
    out = tmp_path / "out"
    families = build_device(folder, out, FACTS)
    facts = json.loads((out / "hardware.json").read_text())
    assert facts["moved_bytes_per_s"] == pytest.approx(2e12)
    assert facts["launch_ns"] == pytest.approx(4000, rel=0.01)
    counts = {name: found.num_configurations for name, found in families.items()}
    assert counts == {"linear": 16, "decodes": 12, "prefills": 12, "experts": 6}
    assert families["experts"].num_points == 3 * 6
    device = DeviceLatencies(out)
    assert device.linear.relative_error == families["linear"].relative_error
    assert Collective("all_gather", 2) in device.collectives


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda path: path.unlink(), r"gemm_perf\.parquet: is no aiconfigurator table"),
        (lambda path: path.write_bytes(b"PAR1"), r"gemm_perf\.parquet: is no aiconfigurator table"),
        (lambda path: pq.write_table(pa.table({"m": [1]}), path), r"gemm_perf\.parquet: lacks the column gemm_dtype"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(folder: Path, spoil: Any, rule: str) -> None:  # noqa: ANN401 - a function
    """A missing file, a broken one and one of another layout, each in one line."""
    spoil(folder / "gemm_perf.parquet")
    with pytest.raises(InvalidInputError, match=rule) as caught:
        tables.linear_layers(folder)
    assert "\n" not in str(caught.value)
