"""Rows of aiconfigurator's tables: at the model's own operations, or at plain linear layers; what fits neither is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.imports._aiconfigurator_rows import read_aiconfigurator

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.imports._reading import Placed
    from dooly.tracing import TracedModel

    Write = Callable[[Path, str, list[dict[str, Any]]], None]


@pytest.fixture(scope="module")
def halved() -> TracedModel:
    """The operations of Qwen3 30B A3B on one of two ranks."""
    return operation_table(find_model("qwen3-30b-a3b"), ServingConfig(tensor_parallel_size=2))


def _by_name(folder: Path, traced: TracedModel) -> dict[str, Placed]:
    return {
        rows.operation.name: rows for rows in read_aiconfigurator(folder, traced).placed if rows.operation in traced.operations
    }


def test_products_find_their_widths(folder: Path, halved: TracedModel) -> None:
    """The model's own layer takes the rows of its widths; all other pairs are plain layers, which the families are fitted to."""
    found = read_aiconfigurator(folder, halved)
    own = _by_name(folder, halved)["o_proj"]
    assert [batch.num_tokens for batch in own.batches] == [1, 8, 64, 512]
    assert own.latency_ns[0] == pytest.approx(4000 + 2048 * 2048 / 1e6)
    plain = [rows for rows in found.placed if rows.operation.name.startswith("linear_")]
    assert len(plain) == 16 - 1
    assert len(found.others) == 16


def test_attention_finds_its_heads(folder: Path, halved: TracedModel) -> None:
    """Prompts and decodes of 16 heads and 4 key/value heads are not those of 16 and 2."""
    rows = [rows for rows in read_aiconfigurator(folder, halved).placed if rows.operation.name == "attn"]
    assert [(part.rows, len(part.batches)) for part in rows] == [("context_attention_perf", 9), ("generation_attention_perf", 9)]
    assert Batch((512,) * 4, (0,) * 4) in rows[0].batches
    assert Batch((1,) * 16, (255,) * 16) in rows[1].batches


def test_experts_take_their_router(folder: Path, halved: TracedModel, write_rows: Write) -> None:
    """A rank's part of a mixture of the model's sizes, and the router's product between its sizes, where it was measured."""
    sizes = {"hidden_size": 2048, "inter_size": 768, "topk": 8, "num_experts": 128, "moe_tp_size": 2, "moe_ep_size": 1}
    facts = {"moe_dtype": "bfloat16", "distribution": "balanced", "kernel_source": "some", "latency": 0.1}
    rows = [{"num_tokens": t, **sizes, **facts} for t in (1, 4)]
    write_rows(folder, "moe", [*rows, {**rows[0], "moe_tp_size": 1}])
    assert "experts" not in _by_name(folder, halved)
    products = [{"gemm_dtype": "bfloat16", "m": m, "n": 128, "k": 2048, "latency": 0.001 * m} for m in (1, 8)]
    write_rows(folder, "gemm", products)
    assert _by_name(folder, halved)["experts"].latency_ns.tolist() == pytest.approx([101_000, 104_000])


def test_collectives_find_operator_and_ranks(folder: Path, halved: TracedModel) -> None:
    """Of 256 bytes to 16 KiB, four tokens of 4 KiB are the only whole number near a payload; gathered logits are larger."""
    found = _by_name(folder, halved)
    assert [batch.num_tokens for batch in found["all_reduce"].batches] == [4]
    assert found["all_reduce"].latency_ns[0] == pytest.approx(8_000 + 8192)
    assert "all_gather" not in found


def test_rows_that_find_no_place_are_counted(folder: Path, halved: TracedModel) -> None:
    """Of each table, all rows less those that were placed; the device and the engine are the tables' own."""
    found = read_aiconfigurator(folder, halved)
    assert found.unplaced["gemm_perf of other sizes or types"] == 2 * 4 * 4**2
    assert found.unplaced["moe_perf of other sizes or types"] == 3 * 3 * 2 * 3
    assert (found.facts["device"], found.facts["engine_version"]) == ("NVIDIA H200", "0.24.0")


def _of(name: str, column: str, value: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        table = pq.read_table(folder / f"{name}_perf.parquet")
        place = table.column_names.index(column)
        pq.write_table(table.set_column(place, column, pa.array([value] * len(table))), folder / f"{name}_perf.parquet")

    return change


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (_of("gemm", "framework", "TRTLLM"), r"gemm_perf is of TRTLLM, not of vLLM"),
        (_of("moe", "version", "0.25.0"), r"its tables are of 0\.24\.0 NVIDIA H200 and of 0\.25\.0 NVIDIA H200; give one's"),
        (lambda folder: [file.unlink() for file in folder.glob("*.parquet")], r"holds no gemm_perf\.parquet, context_attention"),
        (lambda folder: (folder / "nccl_perf.parquet").unlink(), r"nothing for 2 tensor-parallel ranks, only for 1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(folder: Path, halved: TracedModel, spoil: Callable[[Path], None], rule: str) -> None:
    """Another engine's, those of two versions, none, and ranks without collectives."""
    spoil(folder)
    with pytest.raises(InvalidInputError, match=rule):
        read_aiconfigurator(folder, halved)
