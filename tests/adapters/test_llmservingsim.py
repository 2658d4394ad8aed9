"""Bundles for LLMServingSim: what they hold, and that our own importer reads the same latencies back."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Store
from dooly.adapters import export_llmservingsim
from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.imports import import_measurements, read_measurements
from dooly.imports._llmservingsim import _facts
from dooly.predict import BatchArrays, default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel

LAYERS = {
    *("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "final_layernorm"),
}
"""Those that LLMServingSim looks up for a Llama (`profiler/models/llama.yaml`), attention and those over requests apart."""


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_a_bundle_has_every_layer_that_the_simulator_looks_up(bundle: Path) -> None:
    """Each of a Llama's layers has a time at every size up to the limits; the facts name the device and whose data it is."""
    dense, per_sequence = _rows(bundle / "tp1" / "dense.csv"), _rows(bundle / "tp1" / "per_sequence.csv")
    assert {row["layer"] for row in dense} == LAYERS
    assert {row["layer"] for row in per_sequence} == {"lm_head", "sampler"}
    assert max(int(row["tokens"]) for row in dense) == 128
    assert max(int(row["sequences"]) for row in per_sequence) == 8
    assert min(float(row["time_us"]) for row in (*dense, *per_sequence)) > 0
    meta = (bundle / "meta.yaml").read_text()
    assert 'gpu: "NVIDIA RTX PRO 6000 Blackwell Server Edition"\n' in meta
    assert 'source: "LLMServingSim (casys-kaist/LLMServingSim 5daddb2), MIT' in meta
    assert "gap_us: 0.5\n" in meta


def test_names_are_text_whatever_they_hold(
    latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """A folder's name may have what YAML reads as a mapping, a comment or a number."""
    for name in ('llama: "8b" #1', "1e3", "l'été"):
        export_llmservingsim(latency, replace(model, name=name), serving, tmp_path)
        assert f"model: {json.dumps(name)}\n" in (tmp_path / "meta.yaml").read_text()
        assert _facts(tmp_path / "meta.yaml")["model"] == name
    (tmp_path / "meta.yaml").write_text("profiler_version: 1.0\nvllm_version: \"0.9\ngpu: 'A ''B'' C'\nmodel: \"1\"\n")
    facts = _facts(tmp_path / "meta.yaml")
    assert (facts["engine_version"], facts["device"], facts["model"]) == ("0.9", "A 'B' C", "1")


def test_attention_is_whole_over_chunks_and_decodes(bundle: Path) -> None:
    """Any number of decodes stands beside any chunk that fits with it: a reader that looks up pairs finds its four corners."""
    rows = _rows(bundle / "tp1" / "attention.csv")
    pairs = {(int(row["prefill_chunk"]), int(row["n_decode"])) for row in rows}
    chunks, counts = ({pair[place] for pair in pairs} for place in (0, 1))
    fits = {(chunk, n) for chunk in chunks for n in counts if 0 < chunk + n <= 128 and n + (chunk > 0) <= 8}
    assert pairs == fits
    assert {row["kv_decode"] for row in rows if row["n_decode"] == "0"} == {"0"}


def test_a_step_is_the_sum_of_the_bundle_s_layers(bundle: Path, latency: LatencyModel) -> None:
    """What the simulator adds up for one decode is what Dooly's step takes: 32 layers of each, and what is around them."""
    dense = {row["layer"]: float(row["time_us"]) for row in _rows(bundle / "tp1" / "dense.csv") if row["tokens"] == "1"}
    heads = {row["layer"]: float(row["time_us"]) for row in _rows(bundle / "tp1" / "per_sequence.csv") if row["sequences"] == "1"}
    point = {"prefill_chunk": "0", "kv_prefill": "0", "n_decode": "1", "kv_decode": "16"}
    (attention,) = (float(row["time_us"]) for row in _rows(bundle / "tp1" / "attention.csv") if point.items() <= row.items())
    once = {"embedding", "final_layernorm"}
    inside = sum(us for layer, us in dense.items() if layer not in once) + dense["layernorm"] + attention
    total_us = 32 * inside + sum(dense[layer] for layer in once) + sum(heads.values())
    assert total_us * 1e-6 == pytest.approx(latency.step(Batch((1,), (15,))).seconds, rel=1e-4)


def test_a_bundle_reads_back_to_the_same_latencies(
    bundle: Path, latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Steps over the imported store take what they take on the device: within 1 % in the median, and 5 % each."""
    store = Store.open(tmp_path / "db", "a")
    import_measurements(store, bundle, model, serving, tool="llmservingsim")
    back = load_latency_model(store, model, serving)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 8, 60)
    batches = [Batch((1,) * n, tuple(rng.integers(16, 500, n).tolist())) for n in counts]
    batches += [Batch((1,) * n + (chunk,), (200,) * n + (0,)) for n, chunk in zip(counts, rng.integers(2, 120, 60), strict=True)]
    ratio = back.steps(batches).seconds / latency.steps(batches).seconds
    assert np.median(np.abs(ratio - 1)) < 0.01
    assert np.abs(ratio - 1).max() < 0.05
    assert back.environment.source == latency.hardware.source  # type: ignore[union-attr]  # it is a shipped device


def test_norms_of_queries_and_keys_are_timed_together(tmp_path: Path) -> None:
    """Qwen3's two norms are one layer of the bundle, whose time is that of both."""
    source = find_model("qwen3-32b")
    serving = default_serving(source, "rtxpro6000", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    latency = load_latency_model(model=source, serving=serving, hardware="rtxpro6000")
    export_llmservingsim(latency, source, serving, tmp_path)
    (joint,) = (
        float(row["time_us"])
        for row in _rows(tmp_path / "tp1" / "dense.csv")
        if (row["layer"], row["tokens"]) == ("qk_norm", "4")
    )
    batches = BatchArrays.of([Batch((4,), (0,))])
    parts = [ns[0] for op, ns in latency.operations_ns(batches) if op.name in {"q_norm", "k_norm"}]
    assert joint == pytest.approx(sum(parts) / 1e3, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "rule"),
    [
        ("qwen3-30b-a3b", {}, "is a mixture of experts"),
        ("gemma-2-9b", {}, "2 kinds of attention"),
        ("llama-3.1-8b", {"quantization": "fp8"}, "no variant of fp8"),
    ],
)
def test_what_a_bundle_has_no_place_for_is_refused(name: str, settings: dict[str, Any], rule: str, tmp_path: Path) -> None:
    """The message says what it is; nothing is written."""
    source = find_model(name)
    serving = default_serving(source, "h200", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2, **settings)
    latency = load_latency_model(model=source, serving=serving, hardware="h200")
    with pytest.raises(UnsupportedModelError, match=rule):
        export_llmservingsim(latency, source, serving, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(
    latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path: Path
) -> None:
    """Where a file stands in its way, the message says so."""
    (tmp_path / "perf").write_text("")
    with pytest.raises(InvalidInputError, match=r"perf/tp1 cannot be made \(Not a directory\)"):
        export_llmservingsim(latency, model, serving, tmp_path / "perf")


def test_a_gap_that_is_no_number_is_refused(bundle: Path, model: ModelSource, serving: ServingConfig, tmp_path: Path) -> None:
    """A bundle that was edited wrongly is told from one without gaps."""
    copy = tmp_path / "bf16"
    shutil.copytree(bundle, copy)
    meta = copy / "meta.yaml"
    meta.write_text(meta.read_text().replace("gap_us: 0.5", "gap_us: half"))
    with pytest.raises(InvalidInputError, match=r"gap_us is 'half', no number"):
        read_measurements(copy, model, replace(serving), tool="llmservingsim")
