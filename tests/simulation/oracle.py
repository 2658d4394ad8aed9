"""Both schedulers, ours and vLLM's own, step for step on one workload, without a model and in virtual time."""

from __future__ import annotations

import json
import random
from collections import deque
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf, lcm
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from dooly.kv_cache_groups import FULL_ATTENTION, AttentionKind, KVCacheGroup
from dooly.simulation import Request, SchedulerConfig, Turn
from dooly.simulation._acceptance import Acceptance
from dooly.simulation._make_kv_cache import make_kv_cache
from dooly.simulation._make_scheduler import make_scheduler
from dooly.simulation._remote_kv import RemoteKV
from dooly.speculation import SpeculativeConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dooly.simulation._steps import Progress

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
    "max_position_embeddings": 1 << 14,
    "torch_dtype": "bfloat16",
}
NEW_TOKENS = count(1 << 52)
"""No two generated tokens are equal, so that no two requests generate alike."""
Entry = tuple[int, int, int]
"""Request position, new tokens, computed tokens."""


class Step(NamedTuple):
    """What one step did, for comparing."""

    batch: list[Entry]
    first_scheduled: set[int]
    first_token: set[int]
    finished: set[int]


class Case(NamedTuple):
    """A workload and settings; `arrival_ns` counts steps here, so that schedules need no latencies."""

    requests: list[Request]
    config: SchedulerConfig


def random_case(seed: int, *, ahead: bool = False) -> Case:
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
        async_scheduling=ahead,
    )
    return Case(requests, config)


def random_cache_case(seed: int, *, ahead: bool | None = None) -> Case:
    """Draw a case in which prompts share beginnings, or layers keep other tokens than all: caches are tight.

    Where `ahead` does not say, whether the next step is scheduled while one runs is drawn as well.
    """
    rng = random.Random(seed)  # noqa: S311 -- test data
    requests, config = random_case(seed + 1000)
    groups = random_groups(rng)
    config = replace(
        config,
        enable_chunked_prefill=True,
        max_num_batched_tokens=max(config.max_num_seqs, rng.choice([16, 48, 100, 700])),
        enable_prefix_caching=rng.random() < 0.85,
        kv_cache_groups=groups,
        async_scheduling=rng.random() < 0.5 if ahead is None else ahead,
    )
    size, depth = rng.choice([config.block_size, 24, 40, 100]), rng.choice([0, 2, 8])
    num_chains = rng.choice([1, 2, 5])
    sharing = [
        replace(
            r,
            prefix_ids=tuple(rng.randrange(num_chains) + 10 * level for level in range(rng.randint(0, depth))),
            prefix_block_size=size,
        )
        for r in requests
    ]
    totals = np.array([r.num_prompt_tokens + r.num_output_tokens - 1 for r in sharing])
    fewest = int(make_kv_cache(sharing, config).num_blocks_for(totals).max()) + 1
    return Case(sharing, replace(config, num_kv_blocks=max(2, fewest + rng.choice([0, 0, 3, 20, 60, 1000]))))


def random_priority_case(seed: int, *, ahead: bool | None = None) -> Case:
    """Draw a case as `random_cache_case` does, in which requests differ in priority."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    requests, config = random_cache_case(seed + 5000, ahead=ahead)
    ranked = [replace(request, priority=rng.choice([0, 0, 1, 5])) for request in requests]
    return Case(ranked, replace(config, policy="priority"))


def random_conversation_case(seed: int, *, ahead: bool | None = None) -> Case:
    """Draw a case as `random_cache_case` does, in which some requests open conversations that go on."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    requests, config = random_cache_case(seed + 9000, ahead=ahead)
    turns: list[Request] = []
    for conversation, request in enumerate(requests):
        shared = len(request.prefix_ids) * request.prefix_block_size
        if request.num_prompt_tokens < shared or rng.random() < 0.4:
            turns.append(replace(request, request_id=len(turns)))
            continue
        turns.append(replace(request, request_id=len(turns), turn=Turn(conversation)))
        for _ in range(rng.randint(0, 4)):
            before = turns[-1]
            length = before.num_prompt_tokens + before.num_output_tokens + rng.choice([0, 1, 7, 40])
            output = rng.randint(1, 20)
            if length + output >= MAX_MODEL_LEN:
                break
            turn = Turn(conversation, before.request_id)
            turns.append(replace(before, request_id=len(turns), num_prompt_tokens=length, num_output_tokens=output, turn=turn))
    totals = np.array([r.num_prompt_tokens + r.num_output_tokens - 1 for r in turns])
    fewest = int(make_kv_cache(turns, config).num_blocks_for(totals).max()) + 1
    return Case(turns, replace(config, num_kv_blocks=max(2, fewest + rng.choice([0, 3, 20, 60, 1000]))))


def random_speculative_case(seed: int, *, ahead: bool | None = None) -> Case:
    """Draw a case of conversations, shared beginnings and priorities, in which several tokens are drafted at once."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    draw = rng.choice([random_cache_case, random_conversation_case, random_priority_case])
    requests, config = draw(seed + 13000, ahead=ahead)
    number = rng.choice([1, 2, 3, 7])
    method = rng.choice(["eagle", "eagle", "ngram_gpu"] if config.async_scheduling else ["eagle", "ngram"])
    rates = sorted((rng.choice([0.0, rng.random(), 1.0]) for _ in range(number)), reverse=True)
    speculative = SpeculativeConfig(method, number, tuple(rates), None if "ngram" in method else 0.0, seed)
    threshold = config.long_prefill_token_threshold
    config = replace(
        config,
        kv_cache_groups=(KVCacheGroup(),),
        long_prefill_token_threshold=threshold and max(threshold, 1 + number),
        max_num_batched_tokens=max(config.max_num_batched_tokens, 1 + number),
        speculative=speculative,
    )
    if rng.random() < 0.3:  # requests up to the longest sequence
        longest = max(r.num_prompt_tokens + r.num_output_tokens for r in requests)
        shortest = max(longest, 1 + number, config.long_prefill_token_threshold)
        config = replace(config, max_model_len=shortest)
    totals = np.array([r.num_prompt_tokens + r.num_output_tokens - 1 for r in requests])
    fewest = int(make_kv_cache(requests, config).num_blocks_for(totals).max()) + 1
    return Case(requests, replace(config, num_kv_blocks=max(2, fewest + rng.choice([0, 0, 3, 20, 60, 1000]))))


def random_limits_case(seed: int, *, ahead: bool | None = None) -> Case:
    """Draw a case as others do, in which settings lower the limits of steps, or many requests run at once."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    draw = rng.choice([random_cache_case, random_priority_case, random_speculative_case])
    requests, config = draw(seed + 17000, ahead=ahead)
    number = 1 if config.speculative is None else 1 + config.speculative.num_speculative_tokens
    if rng.random() < 0.15:
        requests = [replace(r, request_id=i, turn=None) for i, r in enumerate(rng.choices(requests, k=rng.randint(300, 400)))]
        requests = sorted(
            (replace(r, num_output_tokens=min(r.num_output_tokens, 5)) for r in requests), key=lambda r: r.arrival_ns
        )
        requests = [replace(r, request_id=i) for i, r in enumerate(requests)]
        config = replace(config, max_num_seqs=512, max_num_batched_tokens=2048, num_kv_blocks=max(config.num_kv_blocks, 4000))
    fewest = max(number, rng.choice([1, 8, 40]))
    return Case(
        requests,
        replace(
            config,
            long_prefill_token_threshold=min(config.max_model_len, rng.choice([0, max(number, 7), max(number, 40)])),
            long_prefill_token_threshold_adaptive=rng.random() < 0.7,
            prefill_schedule_interval=rng.choice([1, 1, 2, 5]),
            max_num_active_seqs=rng.choice([None, rng.randint(1, config.max_num_seqs)]),
            max_num_scheduled_tokens=rng.choice(
                [None, rng.randint(min(fewest, config.max_num_batched_tokens), config.max_num_batched_tokens)]
            ),
        ),
    )


def random_groups(rng: random.Random) -> tuple[KVCacheGroup, ...]:
    """Draw groups of layers: full attention alone, or other kinds beside it or alone."""
    full = KVCacheGroup()
    window = KVCacheGroup(AttentionKind.SLIDING_WINDOW, rng.choice([1, 5, 30, 64, 200]))
    other = KVCacheGroup(AttentionKind.SLIDING_WINDOW, rng.choice([16, 45]))
    chunk = KVCacheGroup(AttentionKind.CHUNKED_LOCAL_ATTENTION, rng.choice([16, 64, 100]))
    state = KVCacheGroup(AttentionKind.MAMBA, None, rng.choice([0, 1]))
    return rng.choice(
        [
            (full,),
            (full,),
            (window,),
            (full, window),
            (window, full, window),
            (full, window, window, other),
            (chunk, full),
            (full, chunk, chunk),
            (full, state),
            (state, state, full),
            (state, full, state, state),
            (state, window, full),
            (full, full, window),
        ]
    )


def our_steps(case: Case) -> Iterator[Step]:
    """Run our scheduler one step at a time; one step is one unit of time."""
    scheduler, to_come = make_scheduler(case.requests, case.config), Arrivals(case)
    for _ in arrivals(case, scheduler.add, lambda: scheduler.has_unfinished, to_come):
        step = scheduler.schedule()
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step)
        to_come.end(set(progress.finished.tolist()))
        yield Step(
            list(zip(*columns, strict=True)),
            set(step.first_scheduled),
            set(progress.first_token.tolist()),
            set(progress.finished.tolist()),
        )


def our_steps_ahead(case: Case) -> Iterator[Step]:
    """Run our scheduler as an engine that schedules the next step while one runs."""
    scheduler, to_come = make_scheduler(case.requests, case.config), Arrivals(case)
    under_way: deque[Progress] = deque()
    for _ in arrivals(case, scheduler.add, lambda: scheduler.has_unfinished, to_come):
        step = scheduler.schedule()
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        batch = list(zip(*columns, strict=True))
        ended: set[int] = set()
        first_token: set[int] = set()
        if batch:
            under_way.append(scheduler.advance(step))
        if len(under_way) == DEPTH or not batch:
            done = scheduler.retire(under_way.popleft())
            first_token, ended = set(done.first_token.tolist()), set(done.finished.tolist())
            to_come.end(ended)
        yield Step(batch, set(step.first_scheduled), first_token, ended)


def our_steps_taken_together(case: Case) -> Iterator[Step]:
    """Run our scheduler with decode steps taken together up to the next arrival, and unfold them."""
    scheduler, to_come, now = make_scheduler(case.requests, case.config), Arrivals(case), 0.0
    while scheduler.has_unfinished or to_come.next < inf:
        for position in to_come.due(now):
            scheduler.add(position)
        if not scheduler.has_unfinished:
            now = to_come.next
            continue
        step = scheduler.schedule()
        num_steps = int(min(step.max_num_steps, to_come.next - now))
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step, num_steps)
        to_come.end(set(progress.finished.tolist()), now + num_steps)
        for index in range(num_steps):
            is_last = index == num_steps - 1
            yield Step(
                [(request, new, computed + index) for request, new, computed in zip(*columns, strict=True)],
                set(step.first_scheduled),
                set(progress.first_token.tolist()) if is_last else set(),
                set(progress.finished.tolist()) if is_last else set(),
            )
        now += num_steps


class Arrivals:
    """The requests still to come: at times of their own, and turns of conversations when the one before has ended."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._to_come = list(range(len(case.requests)))
        self._ends: dict[int, float] = {}
        self._now = 0.0

    def due(self, now: float) -> list[int]:
        """Take the requests that have arrived by now, in order."""
        self._now = now
        due = sorted((position for position in self._to_come if self._at(position) <= now), key=self._at)
        self._to_come = [position for position in self._to_come if position not in due]
        return due

    def end(self, positions: set[int], at: float | None = None) -> None:
        """Note that these have ended, at the end of the step of one unit that is under way if nothing else is said."""
        self._ends |= dict.fromkeys(positions, self._now + 1 if at is None else at)

    @property
    def next(self) -> float:
        """When the next that is sure to come arrives; infinite without one."""
        return min(map(self._at, self._to_come), default=inf)

    def _at(self, position: int) -> float:
        request = self._case.requests[position]
        if request.turn is None or request.turn.follows is None:
            return request.arrival_ns
        return max(request.arrival_ns, self._ends.get(request.turn.follows, inf))


def arrivals(
    case: Case, add: Callable[[int], None], has_unfinished: Callable[[], bool], to_come: Arrivals | None = None
) -> Iterator[None]:
    """Add the requests whose step has come, then let the caller take a step, until all are done."""
    to_come, now = to_come or Arrivals(case), 0.0
    while has_unfinished() or to_come.next < inf:
        if not has_unfinished():
            now = max(now, to_come.next)
        for position in to_come.due(now):
            add(position)
        yield
        now += 1


def vllm_spec(group: KVCacheGroup, config: SchedulerConfig) -> Any:  # noqa: ANN401 -- vLLM may be absent
    """Return vLLM's own description of a group of layers."""
    import torch
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, FullAttentionSpec, MambaSpec, SlidingWindowSpec

    heads = {"block_size": config.block_size, "num_kv_heads": 2, "head_size": 16, "dtype": torch.bfloat16}
    if group.kind is AttentionKind.SLIDING_WINDOW:
        return SlidingWindowSpec(sliding_window=group.window, **heads)
    if group.kind is AttentionKind.CHUNKED_LOCAL_ATTENTION:
        return ChunkedLocalAttentionSpec(attention_chunk_size=group.window, **heads)
    if group.kind is AttentionKind.FULL_ATTENTION:
        return FullAttentionSpec(**heads)
    return MambaSpec(
        block_size=config.block_size if config.enable_prefix_caching else config.max_model_len,
        shapes=((16, 16),),
        dtypes=(torch.float32,),
        mamba_cache_mode="align" if config.enable_prefix_caching else "none",
        num_prefill_checkpoint_blocks=group.num_prefill_checkpoint_blocks,
        prefill_checkpoint_alignment=1 if group.num_prefill_checkpoint_blocks else None,
    )


def vllm_scheduler_factory(model: Path) -> Callable[[SchedulerConfig], Any]:
    """Write the model's configuration and return a function that makes vLLM's scheduler for our settings."""
    pytest.importorskip("vllm", reason="the oracle is vLLM's own scheduler")
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler as VllmAsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler as VllmScheduler
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)

    (model / "config.json").write_text(json.dumps(MODEL_CONFIG))

    def make(config: SchedulerConfig) -> Any:  # noqa: ANN401 -- vLLM may be absent
        engine_config = EngineArgs(
            model=str(model),
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="bfloat16",
            enforce_eager=True,
            enable_prefix_caching=config.enable_prefix_caching,
            async_scheduling=False,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            block_size=config.block_size,
            enable_chunked_prefill=config.enable_chunked_prefill,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            long_prefill_token_threshold_adaptive=config.long_prefill_token_threshold_adaptive,
            max_num_active_seqs=config.max_num_active_seqs,
            max_num_scheduled_tokens=config.max_num_scheduled_tokens,
            scheduler_reserve_full_isl=config.scheduler_reserve_full_isl,
            watermark=config.watermark,
            scheduling_policy=config.policy,
            kv_cache_memory_bytes=1 << 30,
            gpu_memory_utilization=0.3,
        ).create_engine_config()
        engine_config.cache_config.num_gpu_blocks = config.num_kv_blocks
        if config.speculative is not None:
            engine_config.speculative_config = vllm_speculation(engine_config, config.speculative)
        engine_config.scheduler_config.async_scheduling = config.async_scheduling
        if config.enable_prefix_caching:
            engine_config.cache_config.mamba_cache_mode = "align"
        specs = [vllm_spec(group, config) for group in config.kv_cache_groups]
        groups = [KVCacheGroupSpec([f"layer{index}"], spec) for index, spec in enumerate(specs)]
        kv_cache = KVCacheConfig(config.num_kv_blocks, [], groups, prefix_cache_retention_interval=0)
        scheduler = VllmAsyncScheduler if config.async_scheduling else VllmScheduler
        block_size = lcm(*(spec.block_size for spec in specs))
        return scheduler(engine_config, kv_cache, StructuredOutputManager(engine_config), block_size)

    return make


def vllm_speculation(engine_config: Any, ours: SpeculativeConfig) -> Any:  # noqa: ANN401 -- vLLM may be absent
    """Return vLLM's own settings of how tokens are drafted. No drafter is looked for, as no scheduler asks for one."""
    from vllm.config.speculative import SpeculativeConfig as VllmSpeculativeConfig

    made = VllmSpeculativeConfig(
        method="ngram",
        num_speculative_tokens=ours.num_speculative_tokens,
        target_model_config=engine_config.model_config,
        target_parallel_config=engine_config.parallel_config,
    )
    made.method = ours.method
    return made


def add_to_vllm(case: Case, scheduler: Any, position: int) -> None:  # noqa: ANN401 -- vLLM may be absent
    """Add a request of the case to vLLM's scheduler."""
    from vllm import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher
    from vllm.v1.request import Request as VllmRequest

    ours = case.requests[position]
    sampling = SamplingParams(max_tokens=ours.num_output_tokens, ignore_eos=True)
    sampling.update_from_generation_config({}, None)
    hasher = get_request_block_hasher(scheduler.hash_block_size, sha256)
    request = VllmRequest(
        str(position),
        prompt_tokens(position, ours),
        sampling,
        None,
        arrival_time=ours.arrival_ns
        + position / len(case.requests) / 2,  # no two arrive at once, so that order tells who goes first
        block_hasher=hasher,
        priority=ours.priority,
    )
    scheduler.add_request(request)


def prompt_tokens(position: int, request: Request) -> list[int]:
    """Return tokens for a prompt: equal ones for equal prefix ids in one place, behind them its conversation's, or its own."""
    size = request.prefix_block_size
    shared = [(1 + prefix_id) * size + offset for prefix_id in request.prefix_ids for offset in range(size)]
    behind = range(len(shared), request.num_prompt_tokens)
    if request.turn is not None:
        return [*shared, *(conversation_token(request.turn.conversation, place) for place in behind)]
    own = range((1 + position) << 32, ((1 + position) << 32) + request.num_prompt_tokens)
    return [*shared, *own][: request.num_prompt_tokens]


def conversation_token(conversation: int, place: int) -> int:
    """Return the token that a conversation has in one place."""
    return ((1 + conversation) << 53) + place


def sampled_token(case: Case, name: str, place: int) -> int:
    """Return what a model samples behind so many tokens of a request: what its conversation has there, or a token of its own."""
    turn = case.requests[int(name)].turn
    return next(NEW_TOKENS) if turn is None else conversation_token(turn.conversation, place)


def sampled_tokens(case: Case, scheduler: Any, output: Any, chunks: set[str]) -> list[list[int]]:  # noqa: ANN401 -- vLLM may be absent
    """Return what a model samples of each request in a step that has run: nothing behind `chunks` of prompts.

    Of drafts it accepts as many as ours does; those of requests that were admitted only fill the step up.
    """
    acceptance = None if case.config.speculative is None else Acceptance(case.requests, case.config.speculative)
    admitted = {new.req_id for new in output.scheduled_new_reqs} | set(output.scheduled_cached_reqs.resumed_req_ids)
    sampled: list[list[int]] = []
    for name in output.num_scheduled_tokens:
        request = scheduler.requests.get(name)
        if request is None or name in chunks:
            sampled.append([])
            continue
        num_accepted, num_drafts = 0, len(output.scheduled_spec_decode_tokens.get(name, ()))
        if acceptance is not None and name not in admitted:
            at = request.num_tokens - request.num_prompt_tokens
            num_accepted = min(num_drafts, int(acceptance.of(np.array([int(name)]), np.array([at]))[0]))
        sampled.append([sampled_token(case, name, request.num_tokens + index) for index in range(1 + num_accepted)])
    return sampled


class Throttles:
    """Counts steps as vLLM's data-parallel engine core does, from when the engine was idle, and tells which throttle prompts."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._interval = config.prefill_schedule_interval
        self._num_steps = 0

    def is_busy(self, scheduler: Any) -> bool:  # noqa: ANN401 -- vLLM may be absent
        """Return whether requests have not ended; count anew where all have."""
        if not scheduler.get_num_unfinished_requests():
            self._num_steps = 0
        return scheduler.get_num_unfinished_requests() > 0

    def next(self) -> bool:
        """Return whether the next step throttles."""
        self._num_steps += 1
        return (self._num_steps - 1) % self._interval != 0


def vllm_steps(case: Case, scheduler: Any) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's scheduler, answering each step with the tokens that a model would have sampled."""
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

    seen: set[int] = set()
    has_token: set[int] = set()
    to_come, add = Arrivals(case), partial(add_to_vllm, case, scheduler)
    throttles = Throttles(case.config)
    for _ in arrivals(case, add, lambda: throttles.is_busy(scheduler), to_come):
        output = scheduler.schedule(throttles.next())
        before = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        before.update(zip(output.scheduled_cached_reqs.req_ids, output.scheduled_cached_reqs.num_computed_tokens, strict=True))
        batch = [(int(name), count, before[name]) for name, count in output.num_scheduled_tokens.items()]
        names = list(output.num_scheduled_tokens)
        sampled = sampled_tokens(case, scheduler, output, {name for name in names if scheduler.requests[name].is_prefill_chunk})
        scheduler.update_from_output(output, ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled))
        if case.config.speculative is not None:
            drafts = [[0] * case.config.speculative.num_speculative_tokens for _ in names]
            scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))
        positions = {position for position, _, _ in batch}
        with_token = {int(name) for name, tokens in zip(names, sampled, strict=True) if tokens}
        ended = {p for p in positions if str(p) not in scheduler.requests or scheduler.requests[str(p)].is_finished()}
        to_come.end(ended)
        yield Step(batch, positions - seen, with_token - has_token, ended)
        seen |= positions
        has_token |= with_token


def vllm_call_ahead(case: Case, scheduler: Any, throttles: Throttles) -> Callable[[], Step]:  # noqa: ANN401 -- vLLM may be absent
    """Return what calls vLLM's asynchronous scheduler once, as its engine core does, with two batches under way."""
    from vllm.v1.outputs import ModelRunnerOutput

    under_way: deque[tuple[Any, set[str]]] = deque()
    seen: set[int] = set()
    has_token: set[int] = set()
    has_ended: set[int] = set()

    def call() -> Step:
        output = scheduler.schedule(throttles.next())
        before = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        before.update(zip(output.scheduled_cached_reqs.req_ids, output.scheduled_cached_reqs.num_computed_tokens, strict=True))
        names = list(output.num_scheduled_tokens)
        batch = [(int(name), count, before[name]) for name, count in output.num_scheduled_tokens.items()]
        new = {position for position, _, _ in batch} - seen
        seen.update(new)
        first_token: set[int] = set()
        ended: set[int] = set()
        if names:
            under_way.append((output, {name for name in names if scheduler.requests[name].is_prefill_chunk}))
        if len(under_way) == DEPTH or (under_way and not names):
            done, chunks = under_way.popleft()
            names = list(done.num_scheduled_tokens)
            sampled = sampled_tokens(case, scheduler, done, chunks)
            scheduler.update_from_output(done, ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled))
            first_token = {int(name) for name, tokens in zip(names, sampled, strict=True) if tokens} - has_token
            ended = {int(name) for name in names if name not in scheduler.requests} - has_ended
            has_token.update(first_token)
            has_ended.update(ended)
        return Step(batch, new, first_token, ended)

    return call


def vllm_steps_ahead(case: Case, scheduler: Any) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's asynchronous scheduler; one call is one unit of time."""
    throttles, to_come = Throttles(case.config), Arrivals(case)
    call, add = vllm_call_ahead(case, scheduler, throttles), partial(add_to_vllm, case, scheduler)
    for _ in arrivals(case, add, lambda: throttles.is_busy(scheduler), to_come):
        step = call()
        to_come.end(step.finished)
        yield step


def vllm_times_ahead(case: Case, scheduler: Any, step_ns: int) -> list[tuple[float, float, float]]:  # noqa: ANN401 -- vLLM may be absent
    """Return when each request is scheduled, has its first token and its last by vLLM's asynchronous scheduler.

    It runs in virtual time, in steps of one length.
    """
    throttles, to_come = Throttles(case.config), Arrivals(case)
    call = vllm_call_ahead(case, scheduler, throttles)
    times = [[0.0, 0.0, 0.0] for _ in case.requests]
    ends_ns: deque[float] = deque()
    now_ns, free_ns = 0.0, 0.0
    while throttles.is_busy(scheduler) or to_come.next < inf:
        if not scheduler.get_num_unfinished_requests():
            now_ns = max(now_ns, to_come.next)
        for position in to_come.due(now_ns):
            add_to_vllm(case, scheduler, position)
        scheduled_ns, step = now_ns, call()
        if step.batch:
            free_ns = max(free_ns, now_ns) + step_ns
            ends_ns.append(free_ns)
        if len(ends_ns) == DEPTH or not step.batch:
            now_ns = max(now_ns, ends_ns.popleft())
        to_come.end(step.finished, now_ns)
        for column, (positions, at_ns) in enumerate(
            ((step.first_scheduled, scheduled_ns), (step.first_token, now_ns), (step.finished, now_ns))
        ):
            for position in positions:
                times[position][column] = at_ns
    return [(scheduled, first_token, finish) for scheduled, first_token, finish in times]


def random_load_case(seed: int, *, ahead: bool = False) -> tuple[Case, list[int]]:
    """Draw a case of full attention whose prompts another engine has computed, and how many steps each takes to come.

    In half of the cases prompts share beginnings; caches are tight.
    """
    rng = random.Random(seed)  # noqa: S311 -- test data
    requests, config = random_cache_case(seed, ahead=False) if seed % 2 else random_case(seed)
    config = replace(config, kv_cache_groups=FULL_ATTENTION, async_scheduling=ahead)
    totals = np.array([r.num_prompt_tokens + r.num_output_tokens - 1 for r in requests])
    fewest = int(make_kv_cache(requests, config).num_blocks_for(totals).max()) + 1
    config = replace(config, num_kv_blocks=max(2, fewest + rng.choice([0, 0, 3, 20, 60, 1000])))
    return Case(requests, config), [rng.choice([1, 1, 2, 5, 20]) for _ in requests]


def our_steps_with_loads(case: Case, loads: list[int]) -> Iterator[Step]:
    """Run our scheduler where another engine has computed all prompts."""
    remote = RemoteKV([request.num_prompt_tokens for request in case.requests])
    scheduler, to_come = make_scheduler(case.requests, case.config, remote), Arrivals(case)
    coming: dict[int, int] = {}
    for call, _ in enumerate(arrivals(case, scheduler.add, lambda: scheduler.has_unfinished, to_come)):
        for position in sorted(position for position, due in coming.items() if due <= call):
            scheduler.finish_load(position)
            del coming[position]
        step = scheduler.schedule()
        coming |= {load.request: call + loads[load.request] for load in remote.take_started()}
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step)
        ended = set(progress.finished.tolist())
        to_come.end(ended)
        yield Step(list(zip(*columns, strict=True)), set(step.first_scheduled), set(progress.first_token.tolist()), ended)


def our_steps_with_loads_ahead(case: Case, loads: list[int]) -> Iterator[Step]:
    """Run our scheduler as an engine that schedules ahead, where another engine has computed all prompts."""
    remote = RemoteKV([request.num_prompt_tokens for request in case.requests])
    scheduler, to_come = make_scheduler(case.requests, case.config, remote), Arrivals(case)
    coming: dict[int, int] = {}
    under_way: deque[Progress] = deque()
    for call, _ in enumerate(arrivals(case, scheduler.add, lambda: scheduler.has_unfinished, to_come)):
        for position in sorted(position for position, due in coming.items() if due <= call):
            scheduler.finish_load(position)
            del coming[position]
        step = scheduler.schedule()
        coming |= {load.request: call + loads[load.request] for load in remote.take_started()}
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        batch = list(zip(*columns, strict=True))
        ended: set[int] = set()
        first_token: set[int] = set()
        if batch:
            under_way.append(scheduler.advance(step))
        if len(under_way) == DEPTH or (under_way and not batch):
            done = scheduler.retire(under_way.popleft())
            first_token, ended = set(done.first_token.tolist()), set(done.finished.tolist())
            to_come.end(ended)
        yield Step(batch, set(step.first_scheduled), first_token, ended)


def random_send_case(seed: int) -> tuple[Case, list[int]]:
    """Draw a case of prompts that generate one token each, and how many steps each one's KV cache takes to leave."""
    (requests, config), delays = random_load_case(seed + 300)
    return Case([replace(request, num_output_tokens=1) for request in requests], config), delays


def our_steps_with_sends(case: Case, delays: list[int]) -> Iterator[Step]:
    """Run our scheduler where blocks are kept until another engine has loaded them."""
    scheduler, to_come = make_scheduler(case.requests, case.config, RemoteKV(keeps_finished=True)), Arrivals(case)
    leaving: dict[int, int] = {}
    for call, _ in enumerate(arrivals(case, scheduler.add, lambda: scheduler.has_unfinished, to_come)):
        for position in sorted(position for position, due in leaving.items() if due <= call):
            scheduler.let_go(position)
            del leaving[position]
        step = scheduler.schedule()
        columns = (step.requests.tolist(), step.num_new_tokens.tolist(), step.num_computed_tokens.tolist())
        progress = scheduler.complete(step)
        ended = set(progress.finished.tolist())
        leaving |= {position: call + delays[position] for position in ended}
        to_come.end(ended)
        yield Step(list(zip(*columns, strict=True)), set(step.first_scheduled), set(progress.first_token.tolist()), ended)


def vllm_steps_with_sends(case: Case, scheduler: Any, delays: list[int]) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's scheduler where blocks are kept until another engine has pulled them."""
    from vllm.v1.outputs import KVConnectorOutput

    scheduler.connector = connector = pull_connector(case)
    connector.to_pull.clear()
    connector.keeps_finished = True
    leaving: dict[int, int] = {}
    for call, step in enumerate(vllm_steps(case, scheduler)):
        leaving |= {position: call + delays[position] for position in step.finished}
        yield step
        for position in sorted(position for position, due in leaving.items() if due <= call + 1):
            scheduler._update_from_kv_xfer_finished(KVConnectorOutput(finished_sending={str(position)}))
            del leaving[position]


def pull_connector(case: Case) -> Any:  # noqa: ANN401 -- vLLM may be absent
    """Return a KV connector for vLLM's scheduler that pulls each prompt once, as NIXL's does."""
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    class Pull(KVConnectorBase_V1):  # type: ignore[misc]
        """All that a scheduler asks."""

        def __init__(self) -> None:
            self.to_pull = {str(position) for position in range(len(case.requests))}
            self.started: list[int] = []
            self.keeps_finished = False
            self._connector_metadata = None

        def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:  # noqa: ANN401
            """Return the prompt's tokens that are not here, the first time."""
            num_tokens = request.num_prompt_tokens - num_computed_tokens if request.request_id in self.to_pull else 0
            return num_tokens, num_tokens > 0

        def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:  # noqa: ANN401
            """Begin to pull."""
            del blocks
            if num_external_tokens:
                self.to_pull.remove(request.request_id)
                self.started.append(int(request.request_id))

        def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:  # noqa: ANN401
            """Return whether blocks are kept until they have been sent."""
            del request, block_ids
            return self.keeps_finished, None

        def get_loaded_kv_cache_group_ids(self, request: Any) -> tuple[int, ...]:  # noqa: ANN401
            """Return the groups that are pulled: all."""
            del request
            return tuple(range(len(case.config.kv_cache_groups)))

        def save_kv_layer(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
            """Do what a worker would, which is nothing here."""

        build_connector_meta = start_load_kv = wait_for_layer_load = wait_for_save = save_kv_layer

    return Pull()


def vllm_steps_with_loads(case: Case, scheduler: Any, loads: list[int]) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's scheduler where another engine has computed all prompts."""
    from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

    scheduler.connector = connector = pull_connector(case)
    seen: set[int] = set()
    has_token: set[int] = set()
    coming: dict[int, int] = {}
    to_come, add = Arrivals(case), partial(add_to_vllm, case, scheduler)
    for call, _ in enumerate(arrivals(case, add, lambda: scheduler.get_num_unfinished_requests() > 0, to_come)):
        output = scheduler.schedule()
        coming |= {position: call + loads[position] for position in connector.started}
        connector.started.clear()
        before = {r.req_id: r.num_computed_tokens for r in output.scheduled_new_reqs}
        before.update(zip(output.scheduled_cached_reqs.req_ids, output.scheduled_cached_reqs.num_computed_tokens, strict=True))
        batch = [(int(name), count, before[name]) for name, count in output.num_scheduled_tokens.items()]
        names = list(output.num_scheduled_tokens)
        sampled = sampled_tokens(case, scheduler, output, {name for name in names if scheduler.requests[name].is_prefill_chunk})
        come = {position for position, due in coming.items() if due <= call + 1}
        coming = {position: due for position, due in coming.items() if position not in come}
        arrived = KVConnectorOutput(finished_recving={str(position) for position in come})
        ran = ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, sampled, kv_connector_output=arrived)
        scheduler.update_from_output(output, ran)
        positions = {position for position, _, _ in batch}
        with_token = {int(name) for name, tokens in zip(names, sampled, strict=True) if tokens}
        ended = {p for p in positions if str(p) not in scheduler.requests}
        to_come.end(ended)
        yield Step(batch, positions - seen, with_token - has_token, ended)
        seen |= positions
        has_token |= with_token


def vllm_steps_with_loads_ahead(case: Case, scheduler: Any, loads: list[int]) -> Iterator[Step]:  # noqa: ANN401 -- vLLM may be absent
    """Run vLLM's asynchronous scheduler where another engine has computed all prompts."""
    from vllm.v1.outputs import KVConnectorOutput

    scheduler.connector = connector = pull_connector(case)
    coming: dict[int, int] = {}
    throttles, to_come = Throttles(case.config), Arrivals(case)
    step_once, add = vllm_call_ahead(case, scheduler, throttles), partial(add_to_vllm, case, scheduler)
    for call, _ in enumerate(arrivals(case, add, lambda: throttles.is_busy(scheduler), to_come)):
        come = {position for position, due in coming.items() if due <= call}
        coming = {position: due for position, due in coming.items() if position not in come}
        arrived = KVConnectorOutput(finished_recving={str(position) for position in come})
        scheduler._update_from_kv_xfer_finished(arrived)
        step = step_once()
        coming |= {position: call + loads[position] for position in connector.started}
        connector.started.clear()
        to_come.end(step.finished)
        yield step
