"""Our schedule against vLLM's own scheduler, step for step, without a model and in virtual time."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from dooly.simulation import Request, SchedulerConfig, Workload, simulate
from dooly.simulation._scheduler import Progress, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from dooly.batch import Batch

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]

MAX_MODEL_LEN = 512
DEPTH = 2
"""Steps under way at once in an engine that schedules ahead."""
MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "vocab_size": 128,
    "max_position_embeddings": MAX_MODEL_LEN,
    "torch_dtype": "bfloat16",
}
Entry = tuple[int, int, int]
"""Request position, new tokens, computed tokens."""


class Step(NamedTuple):
    """What one step did, for comparing."""

    batch: list[Entry]
    first_scheduled: set[int]
    first_token: set[int]
    finished: set[int]


class Constant(NamedTuple):
    """A latency backend to which all steps are alike."""

    ns: int

    def step_ns(self, _batch: Batch) -> int:
        """Price one step."""
        return self.ns

    def decode_run_ns(self, _num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Price a run of steps."""
        return np.full(num_steps, self.ns)


class Case(NamedTuple):
    """A workload and settings; `arrival_ns` counts steps here, so that schedules need no latencies."""

    requests: list[Request]
    config: SchedulerConfig


def random_case(seed: int) -> Case:
    """Draw a case: bursts and trickles, short and long prompts, tight and ample caches, all settings mixed."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    block_size = rng.choice([8, 16, 32])
    max_num_seqs = rng.choice([1, 3, 8, 32])
    is_chunked = rng.random() < 0.75
    max_num_batched_tokens = (
        max(max_num_seqs, rng.choice([16, 48, 128, 700])) if is_chunked else MAX_MODEL_LEN + rng.choice([0, 100])
    )
    longest_prompt = rng.choice([4, 60, 400]) if is_chunked else 400
    gaps = rng.choice([[0], [0, 1], [0, 0, 1, 3, 30]])
    longest_output = rng.choice([1, 20, 100])
    requests, arrival = [], 0
    for position in range(rng.randint(1, 40)):
        arrival += rng.choice(gaps)
        requests.append(Request(position, arrival, rng.randint(1, longest_prompt), rng.randint(1, longest_output)))
    longest = max(r.num_prompt_tokens + r.num_output_tokens - 1 for r in requests)
    fewest_blocks = -(-longest // block_size) + 1
    config = SchedulerConfig(
        max_model_len=MAX_MODEL_LEN,
        num_kv_blocks=max(2, fewest_blocks + rng.choice([0, 0, 3, 20, 1000])),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        enable_chunked_prefill=is_chunked,
        long_prefill_token_threshold=rng.choice([0, 0, 7, 40]),
        scheduler_reserve_full_isl=rng.random() < 0.7,
        watermark=rng.choice([0.0, 0.0, 0.05, 0.3]),
    )
    return Case(requests, config)


def our_steps(case: Case) -> Iterator[Step]:
    """Run our scheduler one step at a time; one step is one unit of time."""
    scheduler = Scheduler(case.requests, case.config)
    for _ in arrivals(case, scheduler.add, lambda: scheduler.has_unfinished):
        step = scheduler.schedule()
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step)
        yield Step(
            list(zip(*columns, strict=True)),
            set(step.first_scheduled),
            set(progress.first_token.tolist()),
            set(progress.finished.tolist()),
        )


def our_steps_ahead(case: Case) -> Iterator[Step]:
    """Run our scheduler as an engine that schedules the next step while one runs."""
    scheduler = Scheduler(case.requests, case.config)
    under_way: deque[Progress] = deque()
    for _ in arrivals(case, scheduler.add, lambda: scheduler.has_unfinished):
        step = scheduler.schedule()
        progress = scheduler.advance(step)
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        batch = list(zip(*columns, strict=True))
        ended: set[int] = set()
        first_token: set[int] = set()
        if batch:
            under_way.append(progress)
        if len(under_way) == DEPTH or not batch:
            done = under_way.popleft()
            scheduler.retire(done)
            first_token, ended = set(done.first_token.tolist()), set(done.finished.tolist())
        yield Step(batch, set(step.first_scheduled), first_token, ended)


def our_steps_taken_together(case: Case) -> Iterator[Step]:
    """Run our scheduler with decode steps taken together up to the next arrival, and unfold them."""
    scheduler = Scheduler(case.requests, case.config)
    now, num_arrived = 0, 0
    while num_arrived < len(case.requests) or scheduler.has_unfinished:
        while num_arrived < len(case.requests) and case.requests[num_arrived].arrival_ns <= now:
            scheduler.add(num_arrived)
            num_arrived += 1
        if not scheduler.has_unfinished:
            now = case.requests[num_arrived].arrival_ns
            continue
        step = scheduler.schedule()
        num_steps = step.max_num_steps
        if num_arrived < len(case.requests):
            num_steps = min(num_steps, case.requests[num_arrived].arrival_ns - now)
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step, num_steps)
        for index in range(num_steps):
            is_last = index == num_steps - 1
            yield Step(
                [(request, new, computed + index) for request, new, computed in zip(*columns, strict=True)],
                set(step.first_scheduled),
                set(progress.first_token.tolist()) if is_last else set(),
                set(progress.finished.tolist()) if is_last else set(),
            )
        now += num_steps


def arrivals(case: Case, add: Callable[[int], None], has_unfinished: Callable[[], bool]) -> Iterator[None]:
    """Add the requests whose step has come, then let the caller take a step, until all are done."""
    now, num_arrived = 0, 0
    while num_arrived < len(case.requests) or has_unfinished():
        if not has_unfinished():
            now = max(now, case.requests[num_arrived].arrival_ns)
        while num_arrived < len(case.requests) and case.requests[num_arrived].arrival_ns <= now:
            add(num_arrived)
            num_arrived += 1
        yield
        now += 1


@pytest.fixture(scope="module")
def make_vllm_scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[SchedulerConfig], Any]]:
    """Return a factory of vLLM schedulers for a one-layer model."""
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield vllm_scheduler_factory(tmp_path_factory.mktemp("model"))


def vllm_scheduler_factory(model: Path) -> Callable[[SchedulerConfig], Any]:
    """Write the model's configuration and return a function that makes vLLM's scheduler for our settings."""
    pytest.importorskip("vllm", reason="the oracle is vLLM's own scheduler")
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    (model / "config.json").write_text(json.dumps(MODEL_CONFIG))

    def make(config: SchedulerConfig) -> Any:  # noqa: ANN401 -- vLLM may be absent
        engine_config = EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=False,
            async_scheduling=False,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            block_size=config.block_size,
            enable_chunked_prefill=config.enable_chunked_prefill,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
            watermark=config.watermark,
            kv_cache_memory_bytes=1 << 30,
            gpu_memory_utilization=0.3,
        ).create_engine_config()
        engine_config.cache_config.num_gpu_blocks = config.num_kv_blocks
        attention = FullAttentionSpec(block_size=config.block_size, num_kv_heads=2, head_size=16, dtype=torch.bfloat16)
        kv_cache = KVCacheConfig(config.num_kv_blocks, [], [KVCacheGroupSpec(["layer"], attention)])
        scheduler = VllmAsyncScheduler if config.async_scheduling else VllmScheduler
        return scheduler(engine_config, kv_cache, StructuredOutputManager(engine_config), config.block_size)

    return make


def add_to_vllm(case: Case, scheduler: Any, position: int) -> None:  # noqa: ANN401 -- vLLM may be absent
    """Add a request of the case to vLLM's scheduler."""
    from vllm import SamplingParams
    from vllm.v1.request import Request as VllmRequest

    ours = case.requests[position]
    sampling = SamplingParams(max_tokens=ours.num_output_tokens, ignore_eos=True)
    sampling.update_from_generation_config({}, None)
    prompt = [1] * ours.num_prompt_tokens
    scheduler.add_request(VllmRequest(str(position), prompt, sampling, None, arrival_time=float(ours.arrival_ns)))


def vllm_steps(case: Case, scheduler: Any) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's scheduler, answering each step with the tokens that a model would have sampled."""
    from vllm.v1.outputs import ModelRunnerOutput

    seen: set[int] = set()
    has_token: set[int] = set()
    for _ in arrivals(case, partial(add_to_vllm, case, scheduler), lambda: scheduler.get_num_unfinished_requests() > 0):
        output = scheduler.schedule()
        before = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        before.update(zip(output.scheduled_cached_reqs.req_ids, output.scheduled_cached_reqs.num_computed_tokens, strict=True))
        batch = [(int(name), count, before[name]) for name, count in output.num_scheduled_tokens.items()]
        names = list(output.num_scheduled_tokens)
        known = {name: scheduler.requests[name].num_tokens for name in names}
        sampled = [[2] if before[name] + output.num_scheduled_tokens[name] == known[name] else [] for name in names]
        scheduler.update_from_output(output, ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled))
        positions = {position for position, _, _ in batch}
        with_token = {int(name) for name, tokens in zip(names, sampled, strict=True) if tokens}
        yield Step(batch, positions - seen, with_token - has_token, {p for p in positions if str(p) not in scheduler.requests})
        seen |= positions
        has_token |= with_token


def vllm_call_ahead(scheduler: Any) -> Callable[[], Step]:  # noqa: ANN401 -- vLLM may be absent
    """Return what calls vLLM's asynchronous scheduler once, as its engine core does, with two batches under way."""
    from vllm.v1.outputs import ModelRunnerOutput

    under_way: deque[tuple[Any, list[str], list[list[int]]]] = deque()
    seen: set[int] = set()
    has_token: set[int] = set()

    def call() -> Step:
        output = scheduler.schedule()
        before = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        before.update(zip(output.scheduled_cached_reqs.req_ids, output.scheduled_cached_reqs.num_computed_tokens, strict=True))
        names = list(output.num_scheduled_tokens)
        batch = [(int(name), count, before[name]) for name, count in output.num_scheduled_tokens.items()]
        new = {position for position, _, _ in batch} - seen
        seen.update(new)
        first_token: set[int] = set()
        ended: set[int] = set()
        if names:
            sampled = [[] if scheduler.requests[name].is_prefill_chunk else [2] for name in names]
            under_way.append((output, names, sampled))
        if len(under_way) == DEPTH or not names:
            done, names, sampled = under_way.popleft()
            scheduler.update_from_output(done, ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled))
            first_token = {int(name) for name, tokens in zip(names, sampled, strict=True) if tokens} - has_token
            ended = {int(name) for name in names if name not in scheduler.requests}
            has_token.update(first_token)
        return Step(batch, new, first_token, ended)

    return call


def vllm_steps_ahead(case: Case, scheduler: Any) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's asynchronous scheduler; one call is one unit of time."""
    call = vllm_call_ahead(scheduler)
    add = partial(add_to_vllm, case, scheduler)
    for _ in arrivals(case, add, lambda: scheduler.get_num_unfinished_requests() > 0):
        yield call()


def vllm_times_ahead(case: Case, scheduler: Any, step_ns: int) -> list[tuple[int, int, int]]:  # noqa: ANN401 -- vLLM may be absent
    """Return when each request is scheduled, has its first token and its last by vLLM's asynchronous scheduler.

    It runs in virtual time, in steps of one length.
    """
    call = vllm_call_ahead(scheduler)
    times = [[0, 0, 0] for _ in case.requests]
    ends_ns: deque[int] = deque()
    now_ns = free_ns = num_arrived = 0
    while num_arrived < len(case.requests) or scheduler.get_num_unfinished_requests() > 0:
        if not scheduler.get_num_unfinished_requests():
            now_ns = max(now_ns, case.requests[num_arrived].arrival_ns)
        while num_arrived < len(case.requests) and case.requests[num_arrived].arrival_ns <= now_ns:
            add_to_vllm(case, scheduler, num_arrived)
            num_arrived += 1
        scheduled_ns, step = now_ns, call()
        if step.batch:
            free_ns = max(free_ns, now_ns) + step_ns
            ends_ns.append(free_ns)
        if len(ends_ns) == DEPTH or not step.batch:
            now_ns = max(now_ns, ends_ns.popleft())
        for column, (positions, at_ns) in enumerate(
            ((step.first_scheduled, scheduled_ns), (step.first_token, now_ns), (step.finished, now_ns))
        ):
            for position in positions:
                times[position][column] = at_ns
    return [(scheduled, first_token, finish) for scheduled, first_token, finish in times]


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_same_schedule_as_vllm_ahead(first_seed: int, make_vllm_scheduler: Callable[[SchedulerConfig], Any]) -> None:
    """The same where the next step is scheduled while one runs, as the engine does by itself."""
    for seed in range(first_seed, first_seed + 20):
        case = random_case(seed)
        case = case._replace(config=replace(case.config, async_scheduling=True))
        expected = list(vllm_steps_ahead(case, make_vllm_scheduler(case.config)))
        assert list(our_steps_ahead(case)) == expected, f"seed {seed}: {case.config}"


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_same_times_as_vllm_ahead(first_seed: int, make_vllm_scheduler: Callable[[SchedulerConfig], Any]) -> None:
    """A simulation, decodes taken together, gives every request the times that vLLM's scheduler does in steps of 7 ns."""
    for seed in range(first_seed, first_seed + 20):
        case = random_case(seed)
        requests = [replace(request, arrival_ns=5 * request.arrival_ns) for request in case.requests]
        case = Case(requests, replace(case.config, async_scheduling=True))
        expected = vllm_times_ahead(case, make_vllm_scheduler(case.config), 7)
        rows = simulate(Workload(tuple(requests), f"seed {seed}"), Constant(7), case.config).rows
        found = [tuple(round(1e9 * s) for s in (row.scheduled_s, row.first_token_s, row.finish_s)) for row in rows]
        assert found == expected, f"seed {seed}: {case.config}"


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_same_schedule_as_vllm(first_seed: int, make_vllm_scheduler: Callable[[SchedulerConfig], Any]) -> None:
    """Every step holds the same requests, in the same order, with the same new and computed tokens."""
    for seed in range(first_seed, first_seed + 20):
        case = random_case(seed)
        expected = list(vllm_steps(case, make_vllm_scheduler(case.config)))
        assert list(our_steps(case)) == expected, f"seed {seed}: {case.config}"
        assert list(our_steps_taken_together(case)) == expected, f"seed {seed}, steps taken together: {case.config}"


def test_cases_cover_every_rule() -> None:
    """The random cases preempt, split prompts, resume while others wait, and run decodes together, each many times."""
    num_with_preemption = num_with_chunks = num_with_runs = 0
    for seed in range(120):
        case = random_case(seed)
        scheduler = Scheduler(case.requests, case.config)
        has_chunk = has_run = False
        for _ in arrivals(case, scheduler.add, partial(getattr, scheduler, "has_unfinished")):
            step = scheduler.schedule()
            has_run |= step.max_num_steps > 1
            prompts = [case.requests[position].num_prompt_tokens for position in step.requests.tolist()]
            has_chunk |= any(0 < c < p for c, p in zip(step.num_computed_tokens.tolist(), prompts, strict=True))
            scheduler.complete(step)
        num_with_preemption += scheduler.num_preemptions > 0
        num_with_chunks += has_chunk
        num_with_runs += has_run
    assert num_with_preemption >= 20
    assert num_with_chunks >= 40
    assert num_with_runs >= 60
