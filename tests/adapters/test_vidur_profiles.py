"""Profiles for Vidur: the columns that its loader asks for, and times that add up to Dooly's."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dooly.adapters import export_vidur
from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import UnsupportedModelError
from dooly.imports import read_measurements
from dooly.predict import default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel

LAYERS = (
    *("emb", "input_layernorm", "attn_pre_proj", "attn_rope", "attn_post_proj", "post_attention_layernorm"),
    *("mlp_up_proj", "mlp_act", "mlp_down_proj", "add"),
)


@pytest.fixture(scope="module")
def profiles(latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's profiles, where Vidur has those of a device."""
    folder = tmp_path_factory.mktemp("profiling") / "compute" / "rtxpro6000" / "llama"
    export_vidur(latency, model, serving, folder)
    return folder


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def test_profiles_have_what_the_loader_selects_by(profiles: Path) -> None:
    """Widths, ranks and block size are the model's and the engine's; every time has its median."""
    mlp, attention = _rows(profiles / "mlp.csv"), _rows(profiles / "attention.csv")
    facts = {"n_head": "32", "n_kv_head": "8", "n_embd": "4096", "n_expanded_embd": "14336", "vocab_size": "128256"}
    assert all((facts | {"use_gated_mlp": "True", "num_tensor_parallel_workers": "1"}).items() <= row.items() for row in mlp)
    assert all(float(row[f"time_stats.{name}.median"]) >= 0 for row in mlp for name in LAYERS)
    assert all({"block_size": "16", "n_q_head": "32"}.items() <= row.items() for row in attention)
    assert {(row["is_prefill"], row["time_stats.attn_decode.median"] == "") for row in attention} == {
        ("True", True),
        ("False", False),
    }


def test_a_step_of_vidur_s_is_dooly_s_but_for_the_head(profiles: Path, latency: LatencyModel) -> None:
    """What Vidur adds up for one decode is Dooly's step without what Vidur does not count."""
    (layers,) = (row for row in _rows(profiles / "mlp.csv") if row["num_tokens"] == "1")
    (decode,) = (
        row
        for row in _rows(profiles / "attention.csv")
        if (row["batch_size"], row["prefill_chunk_size"], row["kv_cache_size"]) == ("1", "0", "15")
    )
    inside = [float(layers[f"time_stats.{name}.median"]) for name in LAYERS if name != "emb"]
    total_s = 32 * (sum(inside) + float(decode["time_stats.attn_decode.median"])) / 1e3
    step = latency.step(Batch((1,), (15,)))
    outside_s = sum(step.breakdown_s[path] for path in ("model.embed_tokens", "model.norm", "logits_processor", "sampler"))
    assert total_s == pytest.approx(step.seconds - outside_s, rel=1e-4)


def test_profiles_read_back(profiles: Path, model: ModelSource, serving: ServingConfig) -> None:
    """Our own reader places every time but the second norm's, which runs the same kernel as the first."""
    reading = read_measurements(profiles, model, serving, tool="vidur").reading
    assert set(reading.unplaced) == {"mlp.csv post_attention_layernorm"}
    assert len(reading.placed) == 10


def test_rows_of_other_ranks_stay(profiles: Path, model: ModelSource, serving: ServingConfig, latency: LatencyModel) -> None:
    """An export for two ranks goes beside that for one, and a second one replaces its own."""
    two = default_serving(model, "h200", max_model_len=512, max_num_batched_tokens=128, max_num_seqs=8, tensor_parallel_size=2)
    other = load_latency_model(model=model, serving=two, hardware="h200")
    for _ in range(2):
        export_vidur(other, model, two, profiles)
    rows = _rows(profiles / "mlp.csv")
    assert {row["num_tensor_parallel_workers"] for row in rows} == {"1", "2"}
    assert len(rows) == 2 * len({row["num_tokens"] for row in rows})
    export_vidur(latency, model, replace(serving), profiles)


def test_a_model_that_vidur_does_not_know_is_refused(tmp_path: Path) -> None:
    """One with several kinds of attention has no place in the files."""
    source = find_model("gemma-2-9b")
    serving = default_serving(source, "h200", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    latency = load_latency_model(model=source, serving=serving, hardware="h200")
    with pytest.raises(UnsupportedModelError, match="2 kinds of attention"):
        export_vidur(latency, source, serving, tmp_path)
