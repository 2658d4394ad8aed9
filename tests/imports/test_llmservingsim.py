"""Bundles of LLMServingSim: layers find their operations, and what finds none is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.imports import build_bundled_device
from dooly.imports._llmservingsim import read_bundle
from dooly.predict import Hardware, load_latency_model
from dooly.predict._device_latencies import DeviceLatencies
from dooly.predict._fit_hardware import assemble

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.tracing import TracedModel

FACTS = Hardware("made-up", "NVIDIA Made Up", 80 << 30, 1e12, 5e14, 100, 1e12, 0.0, "vllm 0.19.0", "made up")


def test_layers_find_their_operations(bundle: Path, table: TracedModel) -> None:
    """Microseconds become nanoseconds at the operations; one norm serves all that run the same."""
    found = read_bundle(bundle, table)
    placed = {rows.rows: rows for rows in found.placed}
    names = {"qkv_proj", "o_proj", "rotary_emb", "layernorm", "embedding"}
    assert {f"dense.csv {name}" for name in names} <= placed.keys()
    assert {"per_sequence.csv lm_head", "attention.csv", "skew.csv"} <= placed.keys()
    o_proj = placed["dense.csv o_proj"]
    assert o_proj.operation.name == "o_proj"
    assert [batch.num_tokens for batch in o_proj.batches] == [1, 64, 2048]
    assert o_proj.latency_ns.tolist() == [3000, 66000, 2050000]
    assert [batch.num_reqs for batch in placed["per_sequence.csv lm_head"].batches] == [1, 64]


def test_attention_is_its_batches(bundle: Path, table: TracedModel) -> None:
    """A decode's position is its own; decodes of two contexts take a third of what three shots took."""
    placed = {rows.rows: rows for rows in read_bundle(bundle, table).placed}
    attention, skew = placed["attention.csv"], placed["skew.csv"]
    assert attention.batches[0] == Batch((1,), (15,))
    assert Batch((*(1,) * 8, 128), (*(511,) * 8, 512)) in attention.batches
    assert (skew.batches[0], skew.latency_ns[0]) == (Batch((1, 1), (4095, 511)), 11000)


def test_what_finds_no_place_is_told(bundle: Path, table: TracedModel) -> None:
    """A layer that no operation runs; the last norm, which is the same operation as those of the layers."""
    (bundle / "moe.csv").write_text("tokens,activated_experts,time_us\n1,8,20\n2,9,21")
    unplaced = read_bundle(bundle, table).unplaced
    assert unplaced.pop("moe.csv, whose times go by experts reached") == 2
    assert unplaced == {"dense.csv final_layernorm": 3, "dense.csv quantum_proj": 3}


def test_facts_are_those_of_the_profiler(bundle: Path, table: TracedModel) -> None:
    """Who measured what, on which device; a model's folder gives the ranks of the table."""
    facts = read_bundle(bundle.parent, table).facts
    assert facts["device"] == "NVIDIA RTX PRO 6000 Blackwell Server Edition"
    assert (facts["engine_version"], facts["cuda_version"], facts["block_size"]) == ("0.19.0", "13.0", 16)


def test_a_device_of_bundles_prices_a_step(bundle: Path, table: TracedModel, tmp_path: Path) -> None:
    """All of a decode is measured: 32 layers of eight operations of 3 us and attention, and the head's."""
    out = tmp_path / "out"
    build_bundled_device({bundle: table}, out, FACTS)
    model = assemble(table, DeviceLatencies(out), ServingConfig())
    step = model.step(Batch((1,), (15,)))
    assert step.provenance["measured"] == pytest.approx(1)
    rest_s = step.seconds - step.breakdown_s["model.layers.*.self_attn.attn"]
    assert rest_s == pytest.approx((32 * 8 * 3 + 3 + 3 + 11 + 11) * 1e-6, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("dense.csv", None, r"dense\.csv: cannot be read \(No such file"),
        ("attention.csv", "a,b\n1,2", r"attention\.csv: lacks the column prefill_chunk"),
        ("per_sequence.csv", "", r"per_sequence\.csv: lacks the column layer"),
        ("dense.csv", "layer,tokens,time_us\no_proj,1,fast", r"dense\.csv, row 1: time_us is 'fast', no number of at least 0"),
        ("dense.csv", "layer,tokens,time_us\no_proj,1.5,2", r"dense\.csv, row 1: tokens is '1\.5', no whole number"),
        ("../meta.yaml", None, r"meta\.yaml: cannot be read"),
        ("../meta.yaml", "gpu: x", r"meta\.yaml: lacks profiler_version"),
        ("../meta.yaml", "profiler_version: 2.1\nvllm_version: 1\ngpu: x", r"is of profiler 2\.1, of which nothing is known"),
    ],
)
def test_a_bundle_that_is_none_is_refused(bundle: Path, table: TracedModel, name: str, text: str | None, rule: str) -> None:
    """The message names the file and what it lacks."""
    if text is None:
        (bundle / name).unlink()
    else:
        (bundle / name).write_text(text)
    with pytest.raises(InvalidInputError, match=rule):
        read_bundle(bundle, table)


@pytest.mark.parametrize(
    ("place", "rule"), [("..", r"for 2 tensor-parallel ranks, only for 1"), (".", r"only for 1"), ("../..", r"no folder tp1")]
)
def test_ranks_that_are_not_there_are_refused(bundle: Path, place: str, rule: str) -> None:
    """The message says which there are; a folder without any is none of a bundle."""
    table = operation_table(find_model("llama-3.1-8b"), ServingConfig(tensor_parallel_size=2))
    with pytest.raises(InvalidInputError, match=rule):
        read_bundle((bundle / place).resolve(), table)


def test_the_shipped_device_holds_the_bundled_models() -> None:
    """Llama 3.1 8B on the device that bundles were measured on is measured through and through."""
    model = load_latency_model(model=find_model("llama-3.1-8b"), hardware="rtxpro6000")
    assert model.step(Batch((1,) * 8, (500,) * 8)).provenance["measured"] == pytest.approx(1)
