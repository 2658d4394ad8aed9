"""How a store leads from a model to its records when the machine or its settings change between profiles."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from dbstore import Environment, Store
from dooly.catalog import on_this_machine, profiled_model, read_traced, write_described, write_traced
from dooly.device import cpu_name
from dooly.engines import ModelSource, ServingConfig
from dooly.errors import MissingOperationError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation

pytestmark = pytest.mark.engine  # a trace is named by the engine's version

SERVING = ServingConfig()
ENVIRONMENT = Environment(
    device="NVIDIA H200",
    device_kind="cuda",
    driver="580.0",
    torch_version="2.11.0+cu130",
    engine="vllm",
    engine_version="0.26.0",
    attention_backend="FLASH_ATTN",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=None,
    clocks="SM up to 1980 MHz, memory up to 3201 MHz, up to 700 W",
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The power limit, in watts, of the one GPU that this machine has by its NVML."""
    limit = {"watts": 700}
    found = ModuleType("pynvml")
    members = {
        "NVMLError": RuntimeError,
        "NVML_CLOCK_SM": 1980,
        "NVML_CLOCK_MEM": 3201,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetName": lambda _handle: ENVIRONMENT.device,
        "nvmlSystemGetDriverVersion": lambda: ENVIRONMENT.driver,
        "nvmlDeviceGetMaxClockInfo": lambda _handle, kind: kind,
        "nvmlDeviceGetEnforcedPowerLimit": lambda _handle: 1000 * limit["watts"],
    }
    found.__dict__.update(members)
    monkeypatch.setitem(sys.modules, "pynvml", found)
    return limit


@pytest.fixture
def model(tmp_path: Path) -> ModelSource:
    """A configuration."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MadeUp"]}))
    return ModelSource("made-up", tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "db", "a")


@pytest.fixture
def traced(operation: Callable[..., TracedOperation]) -> TracedModel:
    """A traced model of one operation."""
    return TracedModel("made-up", {"engine": "vllm"}, (operation("s", "up"),))


def _profiled(store: Store, model: ModelSource, traced: TracedModel, environment: Environment) -> None:
    write_described(store, environment, traced)
    write_traced(store, model, SERVING, traced, environment)


def test_a_model_is_found_in_every_environment(store: Store, model: ModelSource, traced: TracedModel) -> None:
    """An environment that changed where it does not show beforehand gets a link of its own, and the old one keeps its own."""
    changed = replace(ENVIRONMENT, block_size=32)
    for environment in (ENVIRONMENT, changed, changed):
        _profiled(store, model, traced, environment)
    assert {digest for _, digest in read_traced(store, model, SERVING)} == {ENVIRONMENT.digest, changed.digest}
    assert all(found == traced for found, _ in read_traced(store, model, SERVING))


def test_a_compiled_engine_has_a_profile_of_its_own(store: Store, model: ModelSource, traced: TracedModel) -> None:
    """Settings that have a CPU compile the model find neither the eager trace nor its environment, and the other way round."""
    eager = replace(ENVIRONMENT, device_kind="cpu", clocks=None, num_threads=2)
    compiled, settings = replace(eager, execution_mode="compiled"), replace(SERVING, enforce_eager=False)
    layout = {"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "enable_expert_parallel": False}
    traced = replace(traced, environment=layout)
    _profiled(store, model, traced, eager)
    assert read_traced(store, model, settings) == ()
    with pytest.raises(MissingOperationError, match=r"run `dooly profile made-up --dtype bfloat16 --no-enforce-eager` on it"):
        profiled_model(store, model, settings, None)
    write_described(store, compiled, traced)
    write_traced(store, model, settings, traced, compiled)
    assert profiled_model(store, model, settings, None) == (traced, compiled)
    for plain in (SERVING, replace(SERVING, enforce_eager=True)):
        assert profiled_model(store, model, plain, None) == (traced, eager)
    assert profiled_model(store, model, SERVING, compiled) == (traced, compiled), "an environment that is named is taken"


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_USE_V2_MODEL_RUNNER"])
def test_settings_of_the_process_lead_to_another_profile(
    store: Store, model: ModelSource, traced: TracedModel, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes threads or the model runner is seen before the engine starts: records of before are not taken for new."""
    _profiled(store, model, traced, ENVIRONMENT)
    monkeypatch.setenv(variable, "1")
    assert read_traced(store, model, SERVING) == ()
    monkeypatch.undo()
    assert read_traced(store, model, SERVING) == ((traced, ENVIRONMENT.digest),)


def test_a_changed_power_limit_leads_to_another_profile(
    store: Store, model: ModelSource, traced: TracedModel, gpu: dict[str, int]
) -> None:
    """The limits that NVML tells are seen before the engine starts."""
    _profiled(store, model, traced, ENVIRONMENT)
    gpu["watts"] = 350
    assert read_traced(store, model, SERVING) == ()
    gpu["watts"] = 700
    assert read_traced(store, model, SERVING) == ((traced, ENVIRONMENT.digest),)


def test_this_machine_as_it_is_now_comes_first(gpu: dict[str, int]) -> None:
    """Of several environments the one that NVML describes is chosen; where none is here, all are left."""
    slowed = replace(ENVIRONMENT, clocks="SM up to 1980 MHz, memory up to 3201 MHz, up to 350 W")
    elsewhere = replace(ENVIRONMENT, device="NVIDIA L4")
    assert on_this_machine([elsewhere, slowed, ENVIRONMENT]) == [ENVIRONMENT]
    gpu["watts"] = 350
    assert on_this_machine([elsewhere, slowed, ENVIRONMENT]) == [slowed]
    assert on_this_machine([elsewhere, replace(elsewhere, block_size=32)]) == [elsewhere, replace(elsewhere, block_size=32)]


def test_installed_versions_come_first() -> None:
    """After an update the profile of the version in use is chosen, whatever its build is called."""
    import torch

    old = replace(ENVIRONMENT, device=cpu_name(), torch_version="1.0.0")
    new = replace(old, torch_version=torch.__version__)
    assert on_this_machine([old, new]) == [new]
