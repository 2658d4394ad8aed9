"""Vidur's predictor, against its contract written out here: where Vidur itself is, `benchmarks/peers.py` runs it."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from dooly.batch import Batch
from dooly.errors import InvalidInputError
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from dooly.engines import ModelSource

CONTRACT = {
    "__init__.py": "",
    "types.py": """
from enum import IntEnum
class ExecutionTimePredictorType(IntEnum):
    DUMMY = 1
""",
    "config.py": """
from dataclasses import dataclass
@dataclass
class BaseExecutionTimePredictorConfig:
    no_cache: bool = False
""",
    "execution_time_predictor.py": """
from abc import ABC, abstractmethod
PARTS = ("attention_rope_execution", "attention_kv_cache_save_execution", "attention_decode_execution",
    "attention_prefill_execution", "attention_layer_pre_proj_execution", "attention_layer_post_proj_execution",
    "mlp_layer_up_proj_execution", "mlp_layer_down_proj_execution", "mlp_layer_act_execution", "attn_norm_layer_act_execution",
    "mlp_norm_layer_act_execution", "add_layer_act_execution", "tensor_parallel_communication",
    "pipeline_parallel_communication", "schedule", "sampler_e2e", "prepare_inputs_e2e", "process_model_outputs", "ray_comm")
class BaseExecutionTimePredictor(ABC):
    def __init__(self, predictor_config, replica_config, replica_scheduler_config, metrics_config):
        self._num_layers_per_pipeline_stage = replica_config.model_config.num_layers // replica_config.num_pipeline_stages
    def get_execution_time(self, batch, pipeline_stage):
        return {part: getattr(self, f"_get_{part}_time")(batch) for part in PARTS}
for part in PARTS:
    setattr(BaseExecutionTimePredictor, f"_get_{part}_time", abstractmethod(lambda self, batch: 0.0))
BaseExecutionTimePredictor.__abstractmethods__ = frozenset(f"_get_{part}_time" for part in PARTS)
class ExecutionTimePredictorRegistry:
    known = {}
    @classmethod
    def register(cls, key, implementation):
        cls.known[key] = implementation
""",
}
ONCE = ("schedule", "sampler_e2e", "prepare_inputs_e2e", "process_model_outputs", "ray_comm", "pipeline_parallel_communication")
LAYERS = 32


@pytest.fixture(scope="module")
def vidur(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The adapter, in a process that has Vidur's contract."""
    folder = tmp_path_factory.mktemp("peer")
    (folder / "vidur").mkdir()
    for name, text in CONTRACT.items():
        (folder / "vidur" / name).write_text(text)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("dooly.adapters.vidur")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == "vidur" or name == "dooly.adapters.vidur"]:
            del sys.modules[name]


def _replica(**fields: Any) -> Any:  # noqa: ANN401 - Vidur's own class
    values: dict[str, Any] = {"num_pipeline_stages": 1, "tensor_parallel_size": 1, "device": "h100"}
    return SimpleNamespace(model_config=SimpleNamespace(num_layers=LAYERS), **(values | fields))


def _batch(*sizes: tuple[int, int, bool]) -> Any:  # noqa: ANN401 - Vidur's own class
    """Return a batch of requests that compute so many tokens after so many processed ones, and whether their prompt is done."""
    requests = [SimpleNamespace(num_processed_tokens=done, is_prefill_complete=is_done) for _, done, is_done in sizes]
    return SimpleNamespace(num_tokens=[new for new, *_ in sizes], requests=requests)


def _total_s(times: dict[str, float]) -> float:
    """Return what Vidur makes of the times: those of a layer count for each, the all-reduce twice, others once a step."""
    inside = sum(ms for part, ms in times.items() if part not in ONCE) + times["tensor_parallel_communication"]
    return (LAYERS * inside + sum(times[part] for part in ONCE)) / 1e3


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_takes_in_vidur_what_it_takes_in_dooly(vidur: ModuleType, ranks: int) -> None:
    """Importing registers the predictor; the times of its places add up to Dooly's step, or to its host's launch."""
    from vidur.execution_time_predictor import ExecutionTimePredictorRegistry  # type: ignore[import-not-found] # written above
    from vidur.types import ExecutionTimePredictorType  # type: ignore[import-not-found] # written above

    made = ExecutionTimePredictorRegistry.known[ExecutionTimePredictorType.DUMMY]
    config = vidur.DoolyExecutionTimePredictorConfig(model="llama-3.1-8b")
    assert config.get_type() is ExecutionTimePredictorType.DUMMY
    predictor = made(config, _replica(tensor_parallel_size=ranks), None, None)
    latency = predictor.latency
    assert latency.hardware.name == "h100"
    for batch in (_batch(*[(1, 1001, True)] * 40), _batch((1, 501, True), (700, 0, False)), _batch((64, 128, False))):
        asked = vidur.as_batch(batch)
        launch_s = latency.host.launch_ns(asked.num_tokens, only_decodes=max(asked.num_new_tokens) == 1) / 1e9
        times = predictor.get_execution_time(batch, 0)
        assert _total_s(times) == pytest.approx(max(latency.step(asked).seconds, launch_s), rel=1e-9)
        assert times["mlp_layer_up_proj_execution"] > 0
        assert (times["tensor_parallel_communication"] > 0) == (ranks > 1)
        assert (times["attention_prefill_execution"] > 0) != (times["attention_decode_execution"] > 0)


def test_the_last_token_is_not_in_the_cache(vidur: ModuleType) -> None:
    """Vidur counts the token that a request put out last as processed; its keys and values come with the next step."""
    assert vidur.as_batch(_batch((1, 1001, True), (64, 128, False))) == Batch((1, 64), (1000, 128))


def test_a_store_serves_as_well(vidur: ModuleType, imported: Path, model: ModelSource) -> None:
    """In place of a device that ships, what was measured in a store prices the batches."""
    config = vidur.DoolyExecutionTimePredictorConfig(model=model.name, db=str(imported))
    predictor = vidur.DoolyExecutionTimePredictor(config, _replica(), None, None)
    from dbstore import Store

    own = load_latency_model(Store.open(imported), model)
    assert _total_s(predictor.get_execution_time(_batch((1, 101, True)), 0)) == pytest.approx(
        own.step(Batch((1,), (100,))).seconds
    )


def test_what_is_not_predicted_is_refused(vidur: ModuleType) -> None:
    """A model must be named, and pipelines are none."""
    config = vidur.DoolyExecutionTimePredictorConfig()
    with pytest.raises(InvalidInputError, match="config_model: none given"):
        vidur.DoolyExecutionTimePredictor(config, _replica(), None, None)
    with pytest.raises(InvalidInputError, match="2 stages are not predicted"):
        vidur.DoolyExecutionTimePredictor(config, _replica(num_pipeline_stages=2), None, None)


def test_without_vidur_the_message_says_where_to_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter is of use in Vidur's own process only."""
    for name in [name for name in sys.modules if name.startswith("vidur.") or name == "dooly.adapters.vidur"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vidur", None)  # type: ignore[arg-type]  # which makes importing it fail
    with pytest.raises(ModuleNotFoundError, match="run it in a checkout of microsoft/vidur"):
        importlib.import_module("dooly.adapters.vidur")
