"""The way from profile to a step on the real engine that compiles its model, with a model of three tiny layers.

One engine starts, and compiles once: what compiling takes is most of these tests' time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dbstore import Environment, Store
from dooly.batch import Batch
from dooly.engines import ServingConfig
from dooly.errors import MissingOperationError
from dooly.measure import profile
from dooly.measure.engine import _profiler as profiler_module
from dooly.predict import load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.engines import ModelSource
    from dooly.measure import ProfileResult

pytest.importorskip("vllm", reason="vLLM is not installed; install the cpu or the cuda extra")
pytestmark = pytest.mark.engine

LIMITS = {"dtype": "float32", "max_model_len": 128, "max_num_batched_tokens": 32, "max_num_seqs": 2}
COMPILED = ServingConfig(enforce_eager=False, kv_cache_memory_bytes=64 << 20, **LIMITS)
EAGER = ServingConfig(kv_cache_memory_bytes=64 << 20, **LIMITS)


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., ModelSource]) -> ModelSource:
    """A Llama of five layers."""
    return tiny_llama(num_hidden_layers=5, torch_dtype="float32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty store."""
    return Store.open(tmp_path_factory.mktemp("store") / "db", "a")


@pytest.fixture(scope="module")
def profiled(model: ModelSource, store: Store) -> ProfileResult:
    """Profile the compiled model on an engine of three of its layers: little on each point, as no test looks at latencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler_module, "_COMPILED_BUDGET_NS", 10_000_000)
        patch.setattr("dooly.measure._tasks.is_spoiled", lambda _facts: False)
        patch.setattr("dooly.measure.engine._profile.cache_bytes", lambda _platform: 1)  # so that few layers keep weights cold
        return profile(model, store, COMPILED, target_error=0)


def test_pieces_are_measured(store: Store, profiled: ProfileResult) -> None:
    """Three pieces, attention, logits, sampling and the step have a record of each point, in an environment of compiled code."""
    assert profiled.num_operations == 7
    assert (profiled.num_measured, profiled.num_left) == (profiled.num_points, 0)
    (digest,) = store.documents("environments")
    assert Environment.from_json(store.read_document("environments", digest)).execution_mode == "compiled"
    assert {environment for _, environment in store.keys()} == {digest}  # noqa: SIM118 - a store is no mapping


@pytest.mark.usefixtures("profiled")
def test_a_compiled_step_is_the_sum_of_its_pieces(model: ModelSource, store: Store) -> None:
    """Five layers are one first, four middle and one last piece, and five times attention; beside them are logits and steps."""
    latency = load_latency_model(store, model, COMPILED)
    batch = Batch((1, 20), (30, 0), 1)
    step = latency.step(batch)
    counts = {(op.name, op.module): op.count for op in latency.traced.operations if op.stage == "decoder"}
    assert sorted(counts.values()) == [1, 1, 4, 5]
    assert set(step.breakdown_s) == {
        "model.layers.*.self_attn.attn.piece",
        "model.layers.*.self_attn.attn",
        "piece",
        "logits_processor",
        "sampler",
        "step",
    }
    assert step.seconds == pytest.approx(sum(step.breakdown_s.values()))
    assert all(seconds > 0 for seconds in step.breakdown_s.values())


@pytest.mark.usefixtures("profiled")
def test_an_eager_engine_finds_none_of_it(model: ModelSource, store: Store) -> None:
    """Records of the compiled engine never stand for the eager one."""
    with pytest.raises(MissingOperationError, match="no profile of this model with --dtype float32;"):
        load_latency_model(store, model, EAGER)


@pytest.mark.usefixtures("profiled")
def test_a_second_compiled_profile_measures_nothing(model: ModelSource, store: Store) -> None:
    """What the store holds is not measured again, and no engine compiles for it."""
    assert profile(model, store, COMPILED, target_error=0).num_measured == 0
