"""What prefix caching must bring about, whatever the schedule: work that is done is not done again, and none is made up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dooly.errors import InvalidInputError, WorkloadError
from dooly.kv_cache_groups import AttentionKind, KVCacheGroup
from dooly.latency import LatencyBackend
from dooly.simulation import Request, SchedulerConfig, Workload, parse_workload, simulate
from dooly.simulation._block_kv_cache import BlockKVCache
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.batch import Batch

CONFIG = SchedulerConfig(max_model_len=16_384, num_kv_blocks=2000, max_num_seqs=2048, max_num_batched_tokens=2048)
LONG_PROMPT = 12_000


class Cost(LatencyBackend):
    """A millisecond a step, and a microsecond a token; counts what it prices."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        self.num_tokens += batch.num_tokens
        return 1_000_000 + 1000 * batch.num_tokens

    def decode_run_ns(self, num_computed_tokens: np.ndarray, num_steps: int) -> np.ndarray:
        """Price decodes, which are all alike."""
        self.num_tokens += num_steps * len(num_computed_tokens)
        return np.full(num_steps, 1_000_000 + 1000 * len(num_computed_tokens))


def one_by_one(num_prompt_tokens: int, config: SchedulerConfig, **prefix: Any) -> list[tuple[int, ...]]:  # noqa: ANN401
    """Return the tokens computed before and in each step of two equal requests of one token, the second behind the first."""
    scheduler = Scheduler([Request(i, 0, num_prompt_tokens, 1, **prefix) for i in range(2)], config)
    steps = []
    for request in range(2):
        scheduler.add(request)
        while scheduler.has_unfinished:
            step = scheduler.schedule()
            steps.append((int(step.num_computed_tokens[0]), int(step.num_new_tokens[0])))
            scheduler.complete(step)
    return steps


def test_the_last_block_of_a_prompt_that_is_cached_whole_is_computed_again() -> None:
    """Its last token generates the next, and blocks are found whole: of 64 tokens 48 are found, of 65 all full blocks."""
    assert one_by_one(64, CONFIG, prefix_ids=(7,), prefix_block_size=64) == [(0, 64), (48, 16)]
    assert one_by_one(65, CONFIG, prefix_ids=(7,), prefix_block_size=65) == [(0, 65), (64, 1)]
    assert one_by_one(65, CONFIG, prefix_ids=(7,), prefix_block_size=40) == [(0, 65), (32, 33)]
    assert one_by_one(65, CONFIG) == [(0, 65), (0, 65)]
    off = replace(CONFIG, enable_prefix_caching=False)
    assert one_by_one(65, off, prefix_ids=(7,), prefix_block_size=65) == [(0, 65), (0, 65)]


def test_a_window_is_resumed_where_the_prompt_ends() -> None:
    """Of a sliding window only what the end of a prompt needs is kept, which is enough for the same prompt."""
    windowed = replace(CONFIG, kv_cache_groups=(KVCacheGroup(AttentionKind.SLIDING_WINDOW, 32), KVCacheGroup()))
    assert one_by_one(200, windowed, prefix_ids=(7,), prefix_block_size=200) == [(0, 200), (192, 8)]


def test_chunked_local_attention_drops_what_lies_before_the_chunk() -> None:
    """Where layers attend within chunks of 64 tokens, a prompt of 10,000 needs a cache for a chunk and a step, no more."""
    chunked = replace(CONFIG, kv_cache_groups=(KVCacheGroup(AttentionKind.CHUNKED_LOCAL_ATTENTION, 64),), num_kv_blocks=134)
    (row,) = simulate(Workload((Request(0, 0, 10_000, 50),), "one"), Cost(), chunked).rows
    assert row.finish_s > 0
    with pytest.raises(WorkloadError, match=r"exceed the KV cache of 133 blocks of 16"):
        Scheduler([Request(0, 0, 10_000, 50)], replace(chunked, kv_cache_groups=(KVCacheGroup(),)))


def preempting(num_kv_blocks: int) -> tuple[list[Request], SchedulerConfig]:
    """Return a long prompt among decodes that grow until they fill the cache."""
    decodes = [Request(i, 0, 16, 400 + i) for i in range(40)]
    long_prompts = [Request(40 + i, i, LONG_PROMPT, 60) for i in range(2)]
    config = replace(CONFIG, num_kv_blocks=num_kv_blocks, scheduler_reserve_full_isl=False)
    return sorted([*decodes, *long_prompts], key=lambda request: request.arrival_ns), config


def test_a_preempted_prompt_finds_its_own_blocks_again() -> None:
    """A prompt of 12,000 tokens beside decodes that fill the rest is preempted, resumes where it was, and ends."""
    requests, config = preempting(1000)
    scheduler = Scheduler(requests, config)
    for position in range(len(requests)):
        scheduler.add(position)
    num_resumed = num_computed = 0
    started: set[int] = set()
    while scheduler.has_unfinished:
        waiting = set(scheduler.waiting)
        step = scheduler.schedule()
        for position, computed in zip(step.requests.tolist(), step.num_computed_tokens.tolist(), strict=True):
            num_resumed += position in waiting and position in started and computed > 0
        started.update(step.requests.tolist())
        num_computed += int(step.num_new_tokens.sum())
        scheduler.complete(step)
    assert scheduler.num_preemptions > 0
    assert num_resumed > 0
    assert num_computed < 1.5 * sum(r.num_prompt_tokens + r.num_output_tokens for r in requests)


def test_a_prompt_longer_than_the_cache_is_refused() -> None:
    """12,000 tokens never fit 600 blocks of 16: said at once, rather than started over for ever."""
    with pytest.raises(WorkloadError, match=r"12000 prompt \+ 60 output tokens exceed the KV cache of 599 blocks of 16 \(2 such"):
        Scheduler(*preempting(600))


@pytest.mark.engine
@pytest.mark.parametrize("ahead", [False, True])
def test_a_preempted_prompt_is_scheduled_as_vllm_does(
    oracle: Any,  # noqa: ANN401 -- a module
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
    *,
    ahead: bool,
) -> None:
    """Step for step, from the first to the last."""
    requests, config = preempting(1000)
    case = oracle.Case(requests, replace(config, async_scheduling=ahead, max_model_len=LONG_PROMPT + 500))
    scheduler = make_vllm_scheduler(case.config)
    ours, theirs = (oracle.our_steps_ahead, oracle.vllm_steps_ahead) if ahead else (oracle.our_steps, oracle.vllm_steps)
    assert list(ours(case)) == list(theirs(case, scheduler))


def test_work_is_not_saved_by_being_thrown_out() -> None:
    """1,024 users of a cache for 68 requests get what 256 users get: preempted blocks that stay cached make nobody faster."""
    config = replace(CONFIG, num_kv_blocks=68 * 36 + 1, max_model_len=1024)
    rates = {}
    for users in (256, 1024):
        cost = Cost()
        requests = parse_workload(f"closed:concurrency={users},requests=1536,prompt=512,output=64")
        served = simulate(requests, cost, config)
        assert cost.num_tokens >= 1536 * (512 + 63)
        rates[users] = served.summary()["throughput"]["output_tokens_per_s"]
    assert rates[1024] == pytest.approx(rates[256], rel=0.03)


def test_a_cache_of_shared_prefixes_saves_their_work() -> None:
    """Ten prompts behind one prefix of 1,024 tokens compute it once; blocks are counted or kept, the schedule is one."""
    cost = Cost()
    simulate(parse_workload("closed:concurrency=1,requests=10,prompt=100,output=1,prefix=1024"), cost, CONFIG)
    assert cost.num_tokens == 1024 + 10 * 100


@pytest.mark.parametrize("ahead", [False, True])
def test_blocks_counted_and_kept_give_one_schedule(monkeypatch: pytest.MonkeyPatch, *, ahead: bool) -> None:
    """Where counts suffice, the cache that keeps each block schedules the same."""
    requests = parse_workload("poisson:rate=40,requests=200,prompt=5-900,output=1-200,seed=3")
    config = replace(CONFIG, num_kv_blocks=150, async_scheduling=ahead, max_model_len=2048)
    counted = simulate(requests, Cost(), config)
    monkeypatch.setattr("dooly.simulation._running_requests.make_kv_cache", BlockKVCache)
    kept = simulate(requests, Cost(), config)
    assert counted.num_preemptions > 20
    assert (kept.rows, kept.num_steps, kept.num_preemptions) == (counted.rows, counted.num_steps, counted.num_preemptions)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"kv_cache_groups": ()}, "kv_cache_groups must hold at least one"),
        ({"policy": "lifo"}, "policy must be fcfs or priority, got 'lifo'"),
        ({"engine": "tgi"}, "engine: 'tgi' is not one of transformers, vllm"),
        (
            {
                "kv_cache_groups": (KVCacheGroup(AttentionKind.MAMBA),),
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": 16_384,
            },
            "prefix caching of recurrent states needs chunked prefill",
        ),
    ],
)
def test_settings_that_no_engine_has_are_refused(changes: dict[str, Any], rule: str) -> None:
    """In one line."""
    with pytest.raises(InvalidInputError, match=rule):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    ("group", "rule"),
    [
        ((AttentionKind.SLIDING_WINDOW,), "sliding_window: window must be at least 1, got None"),
        ((AttentionKind.FULL_ATTENTION, 5), "full_attention: window must be None, got 5"),
        ((AttentionKind.FULL_ATTENTION, None, 1), r"full_attention: num_prefill_checkpoint_blocks must lie in 0\.\.0, got 1"),
    ],
)
def test_groups_that_make_no_sense_are_refused(group: tuple[Any, ...], rule: str) -> None:
    """The kind, the rule and the value."""
    with pytest.raises(InvalidInputError, match=rule):
        KVCacheGroup(*group)


def test_a_prefix_of_no_tokens_is_refused() -> None:
    """An id stands for some tokens."""
    with pytest.raises(WorkloadError, match="prefix_block_size must be at least 1, got 0"):
        Request(0, 0, 5, 5, (1,), 0)
