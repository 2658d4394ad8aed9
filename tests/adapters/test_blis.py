"""Coefficients for BLIS: its own formula over them gives Dooly's steps within the error that is told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from dbstore import Store
from dooly.adapters import export_blis
from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.predict import default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig


def _decode_us(betas: list[float], count: int, read: int) -> float:
    """Return what BLIS computes for decodes of Llama 3.1 8B on one H200 with ten coefficients, written out from its formula."""
    layers, width, kv, inner = 32, 4096, 1024, 14336
    flops_per_us, bytes_per_us = 989e6, 4.8e6
    compute = layers * (2 * count * width * (2 * width + 2 * kv) + 4 * width * read + 6 * count * width * inner) / flops_per_us
    cache = layers * 2 * kv * 2 * (read + count) / bytes_per_us
    weights = layers * width * (2 * width + 2 * kv + 3 * inner) * 2 / bytes_per_us
    return betas[1] * compute + betas[9] * cache + betas[2] * weights + betas[4] * layers + betas[5] * count + betas[6]


def test_coefficients_give_the_steps_back(model: ModelSource, tmp_path: Path) -> None:
    """Ten numbers of at least 0, by which BLIS prices decodes about as Dooly does; the device stands beside them."""
    serving = default_serving(model, "h200", max_model_len=8192, max_num_seqs=256)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    result = export_blis(latency, model, serving, tmp_path / "blis.json")
    facts = json.loads((tmp_path / "blis.json").read_text())
    betas = [float(value) for value in facts["options"]["beta-coeffs"].split(",")]
    assert len(betas) == 10
    assert min(betas) >= 0
    assert 0 < facts["error"]["median"] < 0.1
    for count, context in ((8, 500), (64, 1000), (200, 2000)):
        step_us = 1e6 * latency.step(Batch((1,) * count, (context,) * count)).seconds
        assert _decode_us(betas, count, count * context) == pytest.approx(step_us, rel=0.25)
    device = json.loads((tmp_path / facts["options"]["hardware-config"]).read_text())
    assert device["H200"]["BwPeakTBs"] == 4.8
    assert "in the median" in result.notes[0]


def test_what_cannot_be_fitted_is_refused(imported: Path, model: ModelSource, small: ServingConfig, tmp_path: Path) -> None:
    """A store tells no rates of its device; experts have terms of their own; quantised products too."""
    with pytest.raises(InvalidInputError, match="use --hardware"):
        export_blis(load_latency_model(Store.open(imported), model, small), model, small, tmp_path / "b.json")
    experts = find_model("qwen3-30b-a3b")
    for source, settings, rule in ((experts, {}, "mixture of experts"), (model, {"quantization": "fp8"}, "fp8 is not fitted")):
        own = default_serving(source, "h200", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2, **settings)
        with pytest.raises(UnsupportedModelError, match=rule):
            export_blis(load_latency_model(model=source, serving=own, hardware="h200"), source, own, tmp_path / "b.json")
