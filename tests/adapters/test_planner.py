"""Planner arrays: shapes that the mocker checks, and times that are Dooly's where it looks them up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from dooly.adapters import export_blis, export_llmservingsim, export_planner, export_vidur
from dooly.adapters._grid import prompts_of
from dooly.adapters._wall import wall_s
from dooly.batch import Batch
from dooly.errors import InvalidInputError, UnsupportedModelError
from dooly.predict import BatchArrays, default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel


@pytest.fixture(scope="module")
def arrays(
    latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """The arrays."""
    path = tmp_path_factory.mktemp("planner") / "made" / "perf_data.npz"
    export_planner(latency, model, serving, path)
    with np.load(path) as found:
        return dict(found)


def test_arrays_are_what_the_mocker_reads(arrays: dict[str, np.ndarray]) -> None:
    """Five arrays of doubles, growing axes, and one time for each pair of them."""
    assert {name: found.ndim for name, found in arrays.items()} == {
        "prefill_isl": 1,
        "prefill_ttft_ms": 1,
        "decode_active_kv_tokens": 1,
        "decode_context_length": 1,
        "decode_itl": 2,
    }
    assert {found.dtype for found in arrays.values()} == {np.dtype(np.float64)}
    axes = arrays["decode_active_kv_tokens"], arrays["decode_context_length"]
    assert all((np.diff(axis) > 0).all() for axis in (arrays["prefill_isl"], *axes))
    assert arrays["decode_itl"].shape == tuple(len(axis) for axis in axes)
    assert (arrays["decode_itl"] > 0).all()


def test_times_are_those_of_steps(arrays: dict[str, np.ndarray], latency: LatencyModel) -> None:
    """A prompt is its step; a step of decodes stands where the positions of all and of each say how many they are."""
    place = int(np.searchsorted(arrays["prefill_isl"], 64))
    isl = int(arrays["prefill_isl"][place])
    assert arrays["prefill_ttft_ms"][place] == pytest.approx(1e3 * latency.step(Batch((isl,), (0,))).seconds, rel=1e-4)
    last = len(arrays["decode_context_length"]) - 1
    assert arrays["decode_context_length"][last] == 512
    assert arrays["decode_itl"][-1, last] == pytest.approx(1e3 * latency.step(Batch((1,) * 8, (511,) * 8)).seconds, rel=1e-4)


def test_steps_between_the_points_are_close(model: ModelSource, tmp_path: Path) -> None:
    """Prompts of any size are within 2 %, up to the largest captured one, behind which steps take half as long again, and beyond.

    Decodes are so in nine of ten steps: their table's axes are not their number, and it bends where graphs change.
    """
    serving = default_serving(model, "h200", max_model_len=512, max_num_batched_tokens=640, max_num_seqs=64)
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    export_planner(latency, model, serving, tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as found:
        isl = np.arange(1, 641)
        prompts_ms = 1e3 * wall_s(latency, prompts_of(isl, 512))
        assert np.interp(isl, found["prefill_isl"], found["prefill_ttft_ms"]) == pytest.approx(prompts_ms, rel=0.02)
        axes = found["decode_active_kv_tokens"], found["decode_context_length"]
        table = RegularGridInterpolator(axes, found["decode_itl"])
    errors = []
    for context in (20, 100, 450):
        counts = np.arange(1, 65)
        new = (counts[:, None] > np.arange(64)).astype(np.int64)
        decodes_ms = 1e3 * wall_s(latency, BatchArrays(new, (context - 1) * new, np.zeros_like(counts)))
        errors.append(np.abs(table((counts * context, np.full(64, context))) / decodes_ms - 1))
    assert np.quantile(errors, 0.9) < 0.02


def test_a_step_takes_as_long_as_its_host(model: ModelSource, tmp_path: Path) -> None:
    """Beside an H100 a prompt of one token waits for the launches, and its time says so."""
    serving = default_serving(model, "h100", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    latency = load_latency_model(model=model, serving=serving, hardware="h100")
    export_planner(latency, model, serving, tmp_path / "p.npz")
    assert latency.host is not None
    with np.load(tmp_path / "p.npz") as found:
        launch_ms = latency.host.launch_ns(2, only_decodes=False) / 1e6
        assert found["prefill_ttft_ms"][1] == pytest.approx(
            max(launch_ms, 1e3 * latency.step(Batch((2,), (0,))).seconds), rel=1e-6
        )


@pytest.mark.parametrize("export", [export_planner, export_blis, export_vidur, export_llmservingsim])
def test_files_that_cannot_be_written_are_named(
    model: ModelSource,
    tmp_path: Path,
    export: Any,  # noqa: ANN401 - either exporter
) -> None:
    """A folder lies where a file would go, or a file where its folder would."""
    serving = default_serving(model, "h100", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    latency = load_latency_model(model=model, serving=serving, hardware="h100")
    for name in ("taken", "taken/mlp.csv", "taken/meta.yaml"):
        (tmp_path / name).mkdir()
    with pytest.raises(
        InvalidInputError, match=r"^--output: \S+taken\S* cannot be written \(Is a directory\); give another path$"
    ):
        export(latency, model, serving, tmp_path / "taken")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"^--output: \S+file\S* cannot be"):
        export(latency, model, serving, tmp_path / "file" / "below")


@pytest.mark.parametrize("export", [export_blis, export_vidur])
def test_a_configuration_that_lacks_a_size_is_refused(
    model: ModelSource,
    tmp_path: Path,
    export: Any,  # noqa: ANN401 - either exporter
) -> None:
    """By the size's name; key/value heads alone go by the others where they are left out, as a null too."""
    serving = default_serving(model, "h100", max_model_len=64, max_num_batched_tokens=16, max_num_seqs=2)
    latency = load_latency_model(model=model, serving=serving, hardware="h100")
    config = {name: size for name, size in model.config.items() if name != "intermediate_size"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = replace(model, folder=tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"^--format \w+: llama-3\.1-8b: intermediate_size is None in its config"):
        export(latency, other, serving, tmp_path / "out")
    (tmp_path / "config.json").write_text(json.dumps(model.config | {"num_key_value_heads": None}))
    assert export(latency, other, serving, tmp_path / "out").num_rows > 0
