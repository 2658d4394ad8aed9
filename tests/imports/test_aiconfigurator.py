"""Tables of aiconfigurator: which rows are read, in which units, and what becomes of a device."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dooly.errors import InvalidInputError
from dooly.imports import _aiconfigurator as tables
from dooly.imports import build_device, family_points
from dooly.imports._device import latent_points
from dooly.predict import Hardware
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._family import fit_family
from dooly.predict._kinds import Collective, LinearLayer

if TYPE_CHECKING:
    from pathlib import Path

FACTS = Hardware("made-up", "NVIDIA Made Up", 80 << 30, 3e12, 1e15, 100, 3e12, 0.0, "vllm 0.24.0", "made up")


def test_milliseconds_become_nanoseconds_of_bfloat16_rows(folder: Path) -> None:
    """Eight-bit rows are others, asked for by their type."""
    rows, eight_bit = (tables.linear_layers(folder, dtype) for dtype in ("bfloat16", "fp8"))
    assert len(rows) == len(eight_bit) == 4 * 4**2
    assert rows.latency_ns.min() == pytest.approx(4000 + 256 * 256 / 1e6)
    assert eight_bit.latency_ns == pytest.approx(rows.latency_ns / 2)


def test_attention_rows_are_batches(folder: Path) -> None:
    """Prompts of one token, windows and other kernels are left out; each row is its batch."""
    rows = tables.attention(folder, "context_attention")
    batches = tables.batches(rows)
    assert set(np.unique(batches.new)) == {0, 64, 512, 2048}
    assert batches.num_reqs.tolist() == rows["batch_size"].tolist()
    decodes = tables.batches(tables.attention(folder, "generation_attention"))
    assert set(np.unique(decodes.new)) == {0, 1}
    assert decodes.attention(None).decode_kv_tokens.max() == 16 * 4096
    windowed = tables.attention(folder, "context_attention", windowed=True)
    assert (set(windowed["window_size"]), len(windowed)) == ({128}, 4)


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
    assert counts == {
        "linear": 16,
        "linear-fp8": 16,
        "linear-fp8_block": 16,
        "decodes": 12,
        "prefills": 12,
        "decodes-window": 2,
        "prefills-window": 2,
        "latent-decodes-512-64-128-128": 3,
        "latent-prefills-512-64-128-128": 3,
        "experts": 6,
        "experts-fp8": 6,
    }
    assert families["experts"].num_points == 3 * 6
    device = DeviceLatencies(out)
    (linear,) = device.families(LinearLayer(64, 64, "fp8")) or ()
    assert linear.relative_error == families["linear-fp8"].relative_error
    assert device.families(LinearLayer(64, 64, "mxfp4")) is None
    # The smallest products in blocks all take 15 times 4 us here: no more than launches tell.
    assert device.hardware.launches_ns == {"linear-fp8_block": pytest.approx(60_000, rel=0.5)}
    assert Collective("all_gather", 2) in device.collectives


def test_latent_attention_is_what_is_left_of_its_module(folder: Path) -> None:
    """Projections and what moves bytes are taken off, since a trace has them as operations of their own."""
    linear = fit_family(*family_points(folder, FACTS)["linear"])
    points = latent_points(folder, FACTS, linear)
    assert list(points) == ["latent-decodes-512-64-128-128", "latent-prefills-512-64-128-128"]
    _, features, latency_ns, heads = points["latent-decodes-512-64-128-128"]
    assert (len(features), sorted(set(heads.tolist()))) == (3 * 2 * 2, [4, 8, 16])
    whole = tables.latent_modules(folder, "mla_generation_module", "bfloat16").latency_ns
    assert (latency_ns < whole.max()).all()
    assert (latency_ns > FACTS.launch_ns).all()


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


def test_parquet_without_pyarrow_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the extra that brings it."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match=r"parquet needs pyarrow; install it with `pip install 'dooly-llm\[imports\]'`"):
        tables.linear_layers(folder)
