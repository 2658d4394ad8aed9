"""The way from profile to validation on the real engine, with a model of three tiny layers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dbstore import Environment, Store
from dooly.batch import Batch
from dooly.catalog import describe_environment
from dooly.device import native_dtype
from dooly.engines import ModelSource, ServingConfig, find_model, start_engine
from dooly.errors import DoolyError, EngineError, InvalidInputError, MissingOperationError, UnsupportedModelError
from dooly.measure import BatchRunner, profile
from dooly.measure._tasks import InfeasibleBatchError
from dooly.measure.engine import _profile as profile_module
from dooly.measure.engine import _profiler as profiler_module
from dooly.predict import load_latency_model
from dooly.simulation import Request, Workload, parse_workload
from dooly.validation import KeptRuns, read_runs, serve, validate, validate_kept, write_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbstore import Record
    from dooly.engines import Engine
    from dooly.measure import ProfileResult

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SERVING = ServingConfig(
    dtype=native_dtype(), max_model_len=256, max_num_batched_tokens=128, max_num_seqs=4, kv_cache_memory_bytes=64 << 20
)
PROFILE = f"""
import sys
from dbstore import Store
from dooly.engines import ServingConfig, find_model
from dooly.measure import _tasks, profile
_tasks.is_spoiled = lambda _facts: False
result = profile(find_model(sys.argv[1]), Store.open(sys.argv[2], "a"), {SERVING!r}, target_error=0)
print(result.num_measured, result.num_left, "vllm" in sys.modules)
"""


@pytest.fixture(scope="module", autouse=True)
def undisturbed() -> Iterator[None]:
    """Take no measurement for disturbed: what else runs on a machine that tests would have points measured again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dooly.measure._tasks.is_spoiled", lambda _facts: False)
        yield


def _num_records(db: Path) -> int:
    return Store.open(db).info().num_records


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., ModelSource]) -> ModelSource:
    """A Llama of three layers."""
    return tiny_llama(num_hidden_layers=3)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the store lies."""
    return tmp_path_factory.mktemp("store") / "db"


@pytest.fixture(scope="module", autouse=True)
def _short_budgets() -> Iterator[None]:
    """Spend little on each point: these tests do not look at latencies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler_module, "_REPLAY_BUDGET_NS", 10_000_000)
        patch.setattr(profiler_module, "_STEP_BUDGET_NS", 10_000_000)
        yield


@pytest.fixture(scope="module")
def killed(model: ModelSource, db: Path) -> int:
    """Kill a profile in the middle; the number of records that it left."""
    process = subprocess.Popen([sys.executable, "-c", PROFILE, str(model.folder), str(db)], cwd=ROOT)
    try:
        while process.poll() is None and len(list(db.glob("records/*/*/*"))) < 40:
            time.sleep(0.05)
    finally:
        process.kill()
    assert process.wait() == -9
    return _num_records(db)


@pytest.fixture(scope="module")
def profiled(model: ModelSource, db: Path, killed: int) -> ProfileResult:  # noqa: ARG001 - goes first
    """Profile what the killed run left."""
    return profile(model, Store.open(db, "a"), SERVING, target_error=0)


def test_a_changed_environment_has_a_profile_of_its_own(
    model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows only once the engine runs makes another environment: the records of each are found by it."""
    store = Store.open(tmp_path / "db", "a")
    seen: list[Environment] = []

    def described(*arguments: Any) -> Environment:  # noqa: ANN401 - as the function in whose place it stands
        seen.append(replace(describe_environment(*arguments), num_threads=8 + len(seen)))
        return seen[-1]

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(profile_module, "describe_environment", described)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            profile(model, store, SERVING, progress=interrupt)
    assert [environment.num_threads for environment in seen] == [8, 9]
    for environment in seen:
        assert any(store.points(signature, environment.digest) for signature in store.documents("operations"))
    with pytest.raises(MissingOperationError, match="not profiled in the environment asked for"):
        load_latency_model(store, model, SERVING, replace(seen[0], num_threads=10))


def test_a_spent_budget_starts_no_engine(model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several models the first may take all seconds there are: the others are planned, and nothing more."""

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(profile_module, "start_engine", refuse)
    result = profile(model, Store.open(tmp_path / "db", "a"), SERVING, budget_s=0)
    assert (result.num_measured, result.measuring_s) == (0, 0)
    assert result.num_left > 0


def test_a_killed_profile_leaves_a_clean_store(db: Path, killed: int) -> None:
    """After `kill -9` the store verifies, and holds what was measured until then."""
    assert killed > 0
    assert Store.open(db).verify() == ()


def test_the_rerun_measures_the_rest(db: Path, killed: int, profiled: ProfileResult) -> None:
    """Only points that the killed run did not keep are measured."""
    assert profiled.num_measured > 0
    assert profiled.num_measured + killed == profiled.num_points
    assert _num_records(db) >= profiled.num_points  # and what was disturbed once more
    assert profiled.num_left == 0
    assert Store.open(db).verify() == ()


def test_an_adaptive_profile_measures_less_and_predicts(model: ModelSource, tmp_path: Path) -> None:
    """A target of 20 % ends sweeps before the grid does, leaves nothing half done, and the rest is told by families."""
    store = Store.open(tmp_path / "db", "a")
    result = profile(model, store, SERVING, target_error=0.2)
    assert 0 < result.num_measured < result.num_points
    assert result.num_left == 0
    assert result.expected_error is not None
    step = load_latency_model(store, model, SERVING).step(Batch((1,) * 3, (20, 90, 130)))
    assert step.seconds > 0


@pytest.mark.usefixtures("profiled")
def test_a_second_profile_measures_nothing(model: ModelSource, db: Path) -> None:
    """A store that holds everything needs no engine: vLLM is not even imported."""
    command = [sys.executable, "-c", PROFILE, str(model.folder), str(db)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0", "False"]


@pytest.mark.usefixtures("profiled")
def test_a_model_that_shares_layers_measures_the_rest(db: Path, tiny_llama: Callable[..., ModelSource]) -> None:
    """Another width of the MLP is measured; attention, norms, logits and the step are there already."""
    before = _num_records(db)
    wider = tiny_llama("wider", num_hidden_layers=3, intermediate_size=192)
    result = profile(wider, Store.open(db, "a"), SERVING, target_error=0)
    assert 0 < result.num_measured < 0.7 * result.num_points
    assert _num_records(db) >= before + result.num_measured  # and what was disturbed once more


def test_a_model_that_calls_its_layers_otherwise_is_measured(tmp_path: Path) -> None:
    """GPT-2's `n_layer` is the number of layers by which the engine is reduced; they and the step are measured."""
    sizes = {
        "n_embd": 64,
        "n_head": 2,
        "n_layer": 12,
        "n_positions": 256,
        "vocab_size": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **sizes}))
    model, store = find_model(str(tmp_path)), Store.open(tmp_path / "db", "a")
    seen: list[int] = []

    def layers_seen(engine: Engine, serving: ServingConfig) -> Environment:
        seen.append(len(engine.network.transformer.h))
        return describe_environment(engine, serving)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile_module, "describe_environment", layers_seen)
        patch.setattr(profile_module, "cache_bytes", lambda _platform: 1)  # so that few layers keep weights cold
        small = replace(SERVING, max_model_len=32, max_num_batched_tokens=16, max_num_seqs=1)
        result = profile(model, store, small, target_error=0)
    assert 0 < seen[0] < 12
    assert (result.num_measured, result.num_left) == (result.num_points, 0)


def test_points_that_run_out_of_memory_are_infeasible(
    model: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps over many tokens that end as torch ends them without memory leave records that say so, and the sweep goes on."""
    step = BatchRunner.step

    def starved(runner: BatchRunner) -> int:
        if runner._batch.num_tokens > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")
        return step(runner)

    monkeypatch.setattr(BatchRunner, "step", starved)
    store = Store.open(tmp_path / "db", "a")
    assert profile(model, store, SERVING, target_error=0).num_left == 0
    (environment,) = store.documents("environments")
    signatures = [s for s in store.documents("operations") if store.points(s, environment)]
    records = [record for signature in signatures for record in store.read(signature, environment)]
    reasons = {"num_tokens" if _num_tokens(r) > 40 else "": r.infeasible for r in records if "batch" in r.point}
    assert reasons == {"num_tokens": "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB.", "": None}


def _num_tokens(record: Record) -> int:
    point: Any = record.point
    return sum(new for new, _ in point["batch"])


@pytest.mark.usefixtures("profiled")
def test_validation_runs_both_sides(model: ModelSource, db: Path) -> None:
    """The same workload is served and simulated; errors and noise are finite, and every request is served."""
    workload = parse_workload("poisson:rate=40,requests=6,prompt=8-60,output=4-10,seed=0")
    seen: list[tuple[int, int]] = []
    result = validate(model, Store.open(db), workload, SERVING, repeat=2, progress=lambda *done: seen.append(done))
    assert len(result.real) == 2
    expected = [(r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]
    for run in (*result.real, result.simulated):
        assert [(row.num_prompt_tokens, row.num_output_tokens) for row in run.rows] == expected
        assert all(row.arrival_s <= row.scheduled_s < row.first_token_s <= row.finish_s for row in run.rows)
    data = result.to_json()
    assert all(math.isfinite(value) for metric in ("ttft", "tpot") for value in data[metric].values())
    assert json.loads(json.dumps(data))["schema"] == 1
    assert seen[-1] == (12, 12)
    assert seen == sorted(seen)


@pytest.fixture(scope="module")
def engine(model: ModelSource) -> Iterator[Engine]:
    """A running engine with the whole model."""
    engine = start_engine(model, SERVING)
    yield engine
    engine.close()


@pytest.mark.usefixtures("profiled")
# Before the tests that keep an engine running: a process with one is refused another trace.
@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"max_num_seqs": 256}, "max_num_batched_tokens"),
        ({"max_model_len": 4096}, "max_model_len"),
        ({"attention_backend": "NO_SUCH_ATTENTION"}, "NO_SUCH_ATTENTION"),
    ],
)
def test_settings_that_the_engine_refuses(model: ModelSource, tmp_path: Path, settings: dict[str, Any], rule: str) -> None:
    """A profile under settings that vLLM refuses ends with vLLM's reason, in one line."""
    with pytest.raises((EngineError, UnsupportedModelError), match=rule) as caught:
        profile(model, Store.open(tmp_path / "db", "a"), replace(SERVING, **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("profiled")
def test_the_real_engine_is_told_priorities(model: ModelSource, db: Path) -> None:
    """Of requests that wait together, both sides serve the lowest priority first, and of equal ones who came first."""
    priorities = (1, 2, 0, 1, -3)
    requests = tuple(Request(place, 0, 20, 4, priority=priority) for place, priority in enumerate(priorities))
    serving = replace(SERVING, scheduling_policy="priority", max_num_seqs=1)
    result = validate(model, Store.open(db), Workload(requests, "five at once"), serving, repeat=1)
    for run in (*result.real, result.simulated):
        assert [row.request_id for row in sorted(run.rows, key=lambda row: row.scheduled_s)] == [4, 2, 0, 3, 1]


def test_an_engine_that_fails_while_it_warms_up_leaves_nothing(model: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group of ranks that it made is given up with it, so that the next engine in this process can make its own."""

    def fail(*_: object) -> None:
        raise MemoryError("no room to warm up")

    with monkeypatch.context() as patch:
        patch.setattr("dooly.engines.vllm._engine.VllmEngine._warm_up", fail)
        with pytest.raises(MemoryError, match="no room"):
            start_engine(model, SERVING)
    assert not torch.distributed.is_initialized()
    start_engine(model, SERVING).close()


def test_the_model_knows_the_engines_kv_blocks(engine: Engine, model: ModelSource, db: Path) -> None:
    """`LatencyModel.num_kv_blocks` is what the engine makes of the same settings."""
    latency = load_latency_model(Store.open(db), model, SERVING)
    assert latency.block_size == engine.block_size
    assert latency.num_kv_blocks(SERVING) == engine.num_kv_blocks
    assert latency.environment.attention_backend == engine.attention_backend


@pytest.mark.usefixtures("profiled")
def test_runs_that_were_kept_are_judged_without_the_engine(engine: Engine, model: ModelSource, db: Path, tmp_path: Path) -> None:
    """Served once, kept in a file and read: requests and steps are whole, and the comparison needs no engine."""
    spec = "poisson:rate=40,requests=6,prompt=8-60,output=4-10,seed=0"
    workload = parse_workload(spec)
    runs, machine = serve(engine, workload, 2)
    environment = describe_environment(engine, SERVING)
    kept = KeptRuns(model.name, spec, SERVING, environment, engine.num_kv_blocks, machine, runs)
    path = tmp_path / "runs.json.xz"
    write_runs(kept, path)
    again = read_runs(path)
    for run in again.runs:
        done = dict.fromkeys(range(6), 0)
        for step in run.steps:
            for place, new, computed in step.work:
                assert computed == done[place]
                done[place] += new
        # The last output token is sampled, but never computed.
        assert [done[i] for i in done] == [r.num_prompt_tokens + r.num_output_tokens - 1 for r in workload.requests]
    assert again.machine == machine
    result = validate_kept(model, Store.open(db), workload, again)
    assert len(result.real) == 2
    assert result.slowdown is not None
    assert min(result.slowdown) > -1
    assert math.isfinite(result.ttft.mape)
    other = parse_workload(spec.replace("seed=0", "seed=1"))
    with pytest.raises(InvalidInputError, match=r"--real: the runs kept served poisson:rate=40.*give that as --workload"):
        validate_kept(model, Store.open(db), other, again)
    elsewhere = replace(again, environment=replace(environment, driver="another"))
    with pytest.raises(MissingOperationError, match="not profiled in the environment asked for"):
        validate_kept(model, Store.open(db), workload, elsewhere)


BATCHES = (
    Batch((1, 1, 1), (16, 90, 41)),
    Batch((128,), (0,), 1),
    Batch((20, 50), (100, 7), 2),
    Batch((1, 1, 60), (30, 128, 64), 1),
)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_batch_is_realised_exactly(engine: Engine, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's scheduler gives each step the new and computed tokens of the batch; decodes grow by one a step."""
    outputs: list[Any] = []
    schedule = engine.scheduler.schedule

    def watch(*arguments: object) -> Any:  # noqa: ANN401 - vLLM's SchedulerOutput
        outputs.append(schedule(*arguments))
        return outputs[-1]

    with BatchRunner(engine, batch).running() as runner:
        monkeypatch.setattr(engine.scheduler, "schedule", watch)
        for number in range(3):
            assert runner.step() > 0
            assert [len(engine.work(output)) for output in engine.scheduler_outputs()] == [batch.num_reqs]
            assert _requests(outputs.pop()) == _grown(batch, number)
            assert not outputs
    assert not engine.has_unfinished_requests()


def _requests(output: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - vLLM's SchedulerOutput
    """Return new and computed tokens of each request that the engine scheduled."""
    cached = output.scheduled_cached_reqs
    computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    computed |= {request.req_id: request.num_computed_tokens for request in output.scheduled_new_reqs}
    return sorted((new, computed[name]) for name, new in output.num_scheduled_tokens.items())


def _grown(batch: Batch, number: int) -> list[tuple[int, int]]:
    pairs = list(zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True))
    decodes = batch.num_reqs - batch.num_new_requests
    return sorted((new, computed + (number if place < decodes else 0)) for place, (new, computed) in enumerate(pairs))


def test_a_batch_beyond_the_kv_cache_is_infeasible(engine: Engine) -> None:
    """It is refused before the engine sees any of it, and the message tells both numbers."""
    context = engine.num_kv_blocks * engine.block_size // 2
    with pytest.raises(
        InfeasibleBatchError, match=rf"2 requests: needs \d+ KV blocks, the engine has {engine.num_kv_blocks - 1}"
    ):
        BatchRunner(engine, Batch((1, 1), (context, context)))
    assert not engine.has_unfinished_requests()


def test_prompts_stay_in_the_vocabulary(engine: Engine) -> None:
    """A model of few tokens gets prompts of those."""
    assert max(engine.prompt(5000)) < 512


def test_requests_generate_as_many_tokens_as_asked(engine: Engine) -> None:
    """A request runs to its number of output tokens under the name that `add` gave, and none is left."""
    name = engine.add(engine.prompt(9), 3)
    outputs = [engine.step() for _ in range(3)]
    assert [[o.request_id for o in step] for step in outputs] == [[name]] * 3
    assert [step[0].finished for step in outputs] == [False, False, True]
    assert not engine.has_unfinished_requests()


def test_validation_checks_before_the_engine_starts(model: ModelSource, db: Path, tmp_path: Path) -> None:
    """No profile, no repeat and requests that are too long are refused at once."""
    workload = parse_workload("poisson:rate=40,requests=2,prompt=8,output=4,seed=0")
    too_long = parse_workload("poisson:rate=40,requests=2,prompt=300,output=4,seed=0")
    cases: list[tuple[type[DoolyError], Any]] = [
        (MissingOperationError, lambda: validate(model, Store.open(tmp_path / "empty", "a"), workload, SERVING)),
        (InvalidInputError, lambda: validate(model, Store.open(db), workload, SERVING, repeat=0)),
        (InvalidInputError, lambda: validate(model, Store.open(db), too_long, SERVING)),
    ]
    for error, call in cases:
        with pytest.raises(error) as caught:
            call()
        assert "\n" not in str(caught.value)
