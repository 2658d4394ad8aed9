"""Predictions for a GPU against what a real engine did on it: the runs that are kept in `benchmarks/groundtruth/h200`."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbstore import Store
from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError
from dooly.predict import load_latency_model
from dooly.simulation import HostTimes, parse_workload, scheduler_config, simulate
from dooly.validation import KeptRuns, read_runs, validate_kept

RUNS = Path(__file__).parents[2] / "benchmarks" / "groundtruth" / "h200"
SECOND = RUNS.with_name("h200-2")
MODEL = "llama-3.1-8b"
FOUND: dict[str, Any] = json.loads((RUNS.parents[1] / "results" / "gpu" / "h200.json").read_text())
"""What `benchmarks/h200_truth.py` found."""
JUDGED = [row for row in (*FOUND["loads"], *FOUND["second"]["loads"]) if row["by"] != "imported"]
"""Loads by each way but the imported tables alone: what ships holds our own single operations too."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The records of Llama 3.1 8B on an H200."""
    folder = tmp_path_factory.mktemp("h200")
    with tarfile.open(RUNS / "records.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return Store.open(str(folder / "db"))


@pytest.fixture(scope="module")
def kept() -> KeptRuns:
    """Twelve requests a second, served by vLLM in its default mode."""
    return read_runs(RUNS / f"{MODEL}.FLASH_ATTN.default.medium.json.xz")


@pytest.mark.parametrize("row", JUDGED, ids=lambda row: f"{row['run']} by {row['by']}")
def test_loads_are_predicted_as_the_documents_say(row: dict[str, Any], store: Store) -> None:
    """Against the second run of each load, by our own records and by what ships: the errors that the documents name."""
    (file,) = (file for folder in (RUNS, SECOND) if (file := folder / f"{row['run']}.json.xz").exists())
    runs = read_runs(file)
    records, hardware = (store, None) if row["by"] == "own" else (None, "h200")
    slowdown = FOUND["second"]["host_slowdown"] if "slower" in row["by"] else None
    model, workload, judged = find_model(runs.model), parse_workload(runs.workload), replace(runs, runs=runs.runs[1:])
    found = validate_kept(model, records, workload, judged, hardware, host_slowdown=slowdown).to_json()
    for metric, within in (("ttft", 0.03), ("tpot", 0.02), ("step", 0.01)):
        assert found[metric]["mean_error"] == pytest.approx(row[metric]["mean_error"], abs=within)


def test_without_its_host_a_gpu_answers_too_early(kept: KeptRuns) -> None:
    """Launching prompts takes longer than running them: left out, first tokens come a tenth earlier than with it."""
    latency = load_latency_model(model=find_model(MODEL), serving=kept.serving, hardware="h200")
    config = scheduler_config(kept.serving, latency)
    workload = parse_workload(kept.workload)
    with_host, without = (simulate(workload, latency, config, host) for host in (None, HostTimes()))
    assert without.ttft_s().mean() < 0.92 * with_host.ttft_s().mean()
    assert (without.host_wait_s, with_host.host_wait_s > 0) == (0, True)


def test_the_eager_engine_takes_longer_by_its_launches(store: Store, kept: KeptRuns) -> None:
    """A decode of one request waits for the host three times as long as the device works."""
    eager = load_latency_model(store, find_model(MODEL), replace(kept.serving, enforce_eager=True, async_scheduling=False))
    graphs = load_latency_model(store, find_model(MODEL), kept.serving)
    assert (eager.schedules_ahead, graphs.schedules_ahead) == (False, True)
    batch = Batch((1,), (500,))
    assert eager.step(batch).seconds > 2 * graphs.step(batch).seconds


def test_an_eager_engine_in_graphs_is_refused(store: Store, kept: KeptRuns) -> None:
    """One of the two is wrong, and the message says which two."""
    with pytest.raises(InvalidInputError, match=r"--enforce-eager: the environment asked for runs CUDA graphs"):
        load_latency_model(store, find_model(MODEL), replace(kept.serving, enforce_eager=True), kept.environment)


def test_what_was_given_for_the_cache_is_what_it_had(kept: KeptRuns) -> None:
    """Runs that were served with the size of the cache by default are simulated with that size, not with the device's room."""
    by_default = replace(kept, serving=replace(kept.serving, kv_cache_memory_bytes=None), num_kv_blocks=512)
    validate_kept(find_model(MODEL), None, parse_workload(kept.workload), by_default, "h200")


def test_steps_are_padded_to_captured_sizes(store: Store, kept: KeptRuns) -> None:
    """Nine tokens are computed as sixteen, but attention reads what there is."""
    graphs = load_latency_model(store, find_model(MODEL), kept.serving)
    nine, sixteen = (graphs.step(Batch((1,) * n, (500,) * n)).breakdown_s for n in (9, 16))
    for name in ("model.layers.*.mlp.down_proj", "model.layers.*.self_attn.qkv_proj"):
        assert nine[name] == sixteen[name]
    assert nine["model.layers.*.self_attn.attn"] < sixteen["model.layers.*.self_attn.attn"]


def test_runs_on_another_device_are_refused(kept: KeptRuns) -> None:
    """The message names what differs."""
    with pytest.raises(InvalidInputError, match=r"differs in device"):
        validate_kept(find_model(MODEL), None, parse_workload(kept.workload), kept, "h100")


def test_runs_of_another_model_are_refused(kept: KeptRuns) -> None:
    """They would be compared as if they were the model's own."""
    with pytest.raises(InvalidInputError, match=r"^--real: the runs kept are of llama-3.1-8b, not mistral-7b-v0.3; give that"):
        validate_kept(find_model("mistral-7b-v0.3"), None, parse_workload(kept.workload), kept, "h200")
