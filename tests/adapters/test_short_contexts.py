"""Exports of servers whose requests are shorter than a step: one prompt cannot fill it, several do."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dooly.adapters import export_blis, export_llmservingsim, export_planner, export_vidur
from dooly.adapters._grid import Limits, attention_points
from dooly.batch import Batch
from dooly.predict import default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel


@pytest.fixture(scope="module")
def short(model: ModelSource) -> ServingConfig:
    """Contexts of half a step."""
    return default_serving(model, "h200", max_model_len=64, max_num_batched_tokens=128, max_num_seqs=4)


@pytest.fixture(scope="module")
def latency(model: ModelSource, short: ServingConfig) -> LatencyModel:
    """The latency model."""
    return load_latency_model(model=model, serving=short, hardware="h200")


@pytest.mark.parametrize("export", [export_blis, export_llmservingsim, export_vidur])
def test_files_are_written(
    latency: LatencyModel,
    model: ModelSource,
    short: ServingConfig,
    tmp_path: Path,
    export: Any,  # noqa: ANN401 - either exporter
) -> None:
    """Whatever is shorter."""
    assert export(latency, model, short, tmp_path / "out").num_rows > 0


def test_prompts_beyond_a_context_are_several(
    latency: LatencyModel, model: ModelSource, short: ServingConfig, tmp_path: Path
) -> None:
    """A step of two full prompts is what the last number of tokens takes."""
    export_planner(latency, model, short, tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as found:
        assert found["prefill_isl"][-1] == 128
        step_s = latency.step(Batch((64, 64), (0, 0))).seconds
        assert found["prefill_ttft_ms"][-1] >= 1e3 * step_s
        assert latency.host is None or found["prefill_ttft_ms"][-1] <= max(
            1e3 * step_s + latency.host.prepare_ns / 1e6, latency.host.launch_ns(128, only_decodes=False) / 1e6
        )


def test_no_point_is_beyond_what_requests_hold(latency: LatencyModel, short: ServingConfig) -> None:
    """Nor are steps larger than all requests together."""
    points = attention_points(Limits.of(latency, short))
    assert max(point.chunk + point.chunk_context for point in points) == 64
    assert Limits.of(latency, replace(short, max_num_seqs=1)).num_tokens == 64
