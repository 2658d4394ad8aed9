"""Llama 3.1 8B on a device that ships, within small limits, and a store of the same by way of a bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dbstore import Store
from dooly.adapters import export_llmservingsim
from dooly.adapters.service import ModelSlot
from dooly.engines import ModelSource, ServingConfig, find_model
from dooly.imports import import_measurements
from dooly.predict import LatencyModel, default_serving, load_latency_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def model() -> ModelSource:
    """The model."""
    return find_model("llama-3.1-8b")


@pytest.fixture(scope="session")
def serving(model: ModelSource) -> ServingConfig:
    """Small limits."""
    return default_serving(model, "rtxpro6000", max_model_len=512, max_num_batched_tokens=128, max_num_seqs=8)


@pytest.fixture(scope="session")
def latency(model: ModelSource, serving: ServingConfig) -> LatencyModel:
    """The latency model, on a device whose kernels have gaps between them."""
    return load_latency_model(model=model, serving=serving, hardware="rtxpro6000")


@pytest.fixture(scope="session")
def slot(model: ModelSource, serving: ServingConfig) -> ModelSlot:
    """What a service answers from: the model on a device that ships."""
    return ModelSlot(model, serving, hardware="rtxpro6000")


@pytest.fixture(scope="session")
def idle() -> dict[str, float]:
    """What `/predict` is asked of a server that has nothing to do."""
    counts = dict.fromkeys(("num_request_waiting", "num_request_running", "num_tokens_generated"), 0)
    return {"input_token_length": 100, "kv_cache_percentage": 0.0, "prefix_cache_score": 0.0, **counts}


@pytest.fixture(scope="session")
def bundle(latency: LatencyModel, model: ModelSource, serving: ServingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's bundle."""
    folder = tmp_path_factory.mktemp("perf") / "llama-3.1-8b" / "bf16"
    export_llmservingsim(latency, model, serving, folder)
    return folder


@pytest.fixture(scope="session")
def small(model: ModelSource) -> ServingConfig:
    """Limits within which a store is read in a second or two."""
    return default_serving(model, "rtxpro6000", max_model_len=128, max_num_batched_tokens=32, max_num_seqs=4)


@pytest.fixture(scope="session")
def imported(model: ModelSource, small: ServingConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that a bundle within the small limits was read into."""
    folder = tmp_path_factory.mktemp("perf") / "llama-3.1-8b" / "bf16"
    export_llmservingsim(load_latency_model(model=model, serving=small, hardware="rtxpro6000"), model, small, folder)
    place = tmp_path_factory.mktemp("store") / "db"
    import_measurements(Store.open(place, "a"), folder, model, small, tool="llmservingsim")
    return place
