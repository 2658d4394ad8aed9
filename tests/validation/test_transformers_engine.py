"""The way from profile to validation on Transformers' continuous batching, with a model of two tiny layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dbstore import Store
from dooly.batch import Batch
from dooly.engines import ModelSource, ServingConfig, start_engine
from dooly.errors import EngineError, InvalidInputError, MissingOperationError
from dooly.measure import profile
from dooly.measure.engine import _profiler as profiler_module
from dooly.predict import BatchArrays, load_latency_model
from dooly.simulation import parse_workload, scheduler_config, simulate
from dooly.validation import validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dooly.measure import ProfileResult

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the cpu extra")

from dooly.engines.transformers._engine import TransformersEngine

SERVING = ServingConfig(
    engine="transformers",
    dtype="float32",
    max_model_len=128,
    max_num_batched_tokens=32,
    max_num_seqs=2,
    kv_cache_memory_bytes=16 << 20,
)
SPEC = "poisson:rate=40,requests=6,prompt=8-60,output=4-10,seed=0"


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Spend little on each point, and take none for disturbed: these tests do not look at latencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler_module, "_REPLAY_BUDGET_NS", 5_000_000)
        patch.setattr(profiler_module, "_STEP_BUDGET_NS", 5_000_000)
        patch.setattr("dooly.measure._tasks.is_spoiled", lambda _facts: False)
        yield


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., ModelSource]) -> ModelSource:
    """A Llama of two layers."""
    return tiny_llama(max_position_embeddings=128)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An empty store."""
    return Store.open(tmp_path_factory.mktemp("store") / "db", "a")


@pytest.fixture(scope="module")
def profiled(model: ModelSource, store: Store) -> ProfileResult:
    """Profile the model into the store."""
    return profile(model, store, SERVING, target_error=0)


def test_every_point_is_measured(model: ModelSource, store: Store, profiled: ProfileResult) -> None:
    """The whole grid is measured, each operation under the engine's name, and a second profile finds nothing to do."""
    assert (profiled.num_measured, profiled.num_left) == (profiled.num_points, 0)
    latency = load_latency_model(store, model, SERVING)
    assert (latency.environment.engine, latency.environment.attention_backend) == ("transformers", "sdpa")
    assert {op.operation.name for op in latency.operations} >= {"paged_attention", "lm_head", "sampler"}
    assert latency.step(Batch((1, 20), (50, 0))).seconds > 0
    assert profile(model, store, SERVING, target_error=0).num_measured == 0


@pytest.mark.usefixtures("profiled")
def test_attention_is_priced_by_every_query_with_every_key(model: ModelSource, store: Store) -> None:
    """Keys are those in the cache and the step's own, once each: FLOPs are queries times them in any mix of a batch."""
    operations = load_latency_model(store, model, SERVING).operations
    (attention,) = (op for op in operations if op.operation.name == "paged_attention")
    batches = [Batch((12,), (0,), 1), Batch((1, 1), (50, 20)), Batch((1, 20), (50, 0), 1)]
    flops, _ = attention.work.cost(BatchArrays.of(batches))
    each = flops[0] / (12 * 12)
    assert flops.tolist() == [each * 12 * 12, each * 2 * (51 + 21), each * 21 * (51 + 20)]


def test_an_engine_has_met_its_longest_contexts_when_it_starts(model: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduced or whole, it decodes as many of the longest requests as its limits allow before anything is timed."""
    contexts = []
    step = TransformersEngine.step

    def noted(self: TransformersEngine) -> Any:  # noqa: ANN401 - its own outputs
        outputs = step(self)
        contexts.append([new + computed for out in self.scheduler_outputs() for new, computed in out.values()])
        return outputs

    monkeypatch.setattr(TransformersEngine, "step", noted)
    for num_layers in (1, None):
        contexts.clear()
        engine = start_engine(model, SERVING, num_layers)
        assert not engine.has_unfinished_requests()
        engine.close()
        assert max(contexts, key=sum) == [SERVING.max_model_len - 1] * SERVING.max_num_seqs


@pytest.mark.parametrize(
    ("settings", "flag", "room"),
    [
        ({"num_gpu_blocks_override": 2}, "--num-gpu-blocks-override", 256),
        ({"kv_cache_memory_bytes": 3 * 256 * 256}, "--kv-cache-memory-bytes", 512),
    ],
)
def test_a_step_that_does_not_fit_in_the_cache_is_refused(
    model: ModelSource, settings: dict[str, int], flag: str, room: int
) -> None:
    """One token more than the KV cache holds is refused with the flag that it was given by; as many as it holds run."""
    enough = replace(SERVING, max_model_len=room + 1, max_num_batched_tokens=room + 1, **settings)
    start_engine(model, enough, 1).close()
    with pytest.raises(
        EngineError, match=rf"^{flag}: [^\n]* room for {room} tokens in blocks of 256, [^\n]* {room + 1}; raise it"
    ):
        start_engine(model, replace(enough, max_model_len=room + 2), 1)


@pytest.mark.usefixtures("profiled")
def test_another_engine_finds_no_profile_here(model: ModelSource, store: Store) -> None:
    """What one engine was measured with tells nothing of another, and the message names the command that would."""
    with pytest.raises(MissingOperationError, match=r"run `dooly profile tiny --dtype float32`"):
        load_latency_model(store, model, ServingConfig(dtype="float32"))
    with pytest.raises(MissingOperationError, match=r"run `dooly profile tiny --dtype float16 --engine transformers`"):
        load_latency_model(store, model, ServingConfig(dtype="float16", engine="transformers"))


@pytest.mark.usefixtures("profiled")
def test_it_is_simulated_by_its_own_schedule(model: ModelSource, store: Store) -> None:
    """The simulation follows this engine's rules, and refuses what only vLLM's scheduler has."""
    latency = load_latency_model(store, model, SERVING)
    config = scheduler_config(SERVING, latency)
    assert (config.engine, config.enable_prefix_caching, config.block_size) == ("transformers", False, 256)
    assert len(simulate(parse_workload(SPEC), latency, config).rows) == 6
    serving = ServingConfig(**{name: getattr(SERVING, name) for name in SERVING.__slots__} | {"scheduling_policy": "priority"})
    with pytest.raises(InvalidInputError, match="policy: Transformers' scheduler has no such setting"):
        simulate(parse_workload(SPEC), latency, scheduler_config(serving, latency))


@pytest.mark.usefixtures("profiled")
def test_validation_runs_both_sides(model: ModelSource, store: Store) -> None:
    """The same workload is served and simulated; errors and noise are finite, and every request is served."""
    workload = parse_workload(SPEC)
    result = validate(model, store, workload, SERVING, repeat=2)
    assert len(result.real) == 2
    expected = [(r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]
    for run in (*result.real, result.simulated):
        assert [(row.num_prompt_tokens, row.num_output_tokens) for row in run.rows] == expected
        assert all(row.arrival_s <= row.scheduled_s < row.first_token_s <= row.finish_s for row in run.rows)
    data = result.to_json()
    assert all(math.isfinite(value) for metric in ("ttft", "tpot") for value in data[metric].values())
