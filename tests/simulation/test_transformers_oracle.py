"""Our schedule against Transformers' own, step for step: its batch processor prepares and updates batches, and no model runs."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from dooly.errors import InvalidInputError
from dooly.kv_cache_groups import AttentionKind, KVCacheGroup
from dooly.simulation import Request, SchedulerConfig
from dooly.simulation._make_scheduler import make_scheduler
from dooly.simulation._transformers_scheduler import TransformersScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("transformers", reason="transformers is not installed; it comes with the cpu extra")

MAX_MODEL_LEN = 256
Step = tuple[tuple[int, int, int], ...]
"""Request position, new tokens and computed tokens of each request of a step, in the order in which it is scheduled."""


class Case(NamedTuple):
    """A workload, whose arrivals count steps, and settings."""

    requests: tuple[Request, ...]
    config: SchedulerConfig


def random_case(seed: int) -> Case:
    """Draw a case: bursts and trickles, short and long prompts, tight and ample caches."""
    rng = random.Random(seed)  # noqa: S311 -- test data
    block_size, seats = rng.choice([8, 16, 32]), rng.choice([1, 3, 8])
    budget = max(seats, rng.choice([12, 48, 300]))
    longest_prompt, longest_output = rng.choice([4, 60, 180]), rng.choice([1, 20, 70])
    now, requests = 0, []
    for place in range(rng.choice([4, 14])):
        now += rng.choice([0, 0, 1, 3, 25])
        requests.append(Request(place, now, rng.randint(1, longest_prompt), rng.randint(1, longest_output)))
    least = max(-(-(r.num_prompt_tokens + r.num_output_tokens) // block_size) for r in requests) + 1
    num_kv_blocks = least + rng.choice([0, 1, 3, 10, 60])
    return Case(tuple(requests), _config(num_kv_blocks, block_size=block_size, max_num_seqs=seats, max_num_batched_tokens=budget))


def _config(num_kv_blocks: int, **settings: Any) -> SchedulerConfig:  # noqa: ANN401 -- settings
    return SchedulerConfig(MAX_MODEL_LEN, num_kv_blocks, enable_prefix_caching=False, engine="transformers", **settings)


@pytest.fixture(scope="module")
def make_processor() -> Callable[[SchedulerConfig], Any]:
    """Return a function that makes Transformers' batch processor of a one-layer model with the settings of a case."""
    from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    network: Any = LlamaForCausalLM(LlamaConfig(**sizes))

    def make(config: SchedulerConfig) -> Any:  # noqa: ANN401 -- Transformers' processor
        settings = ContinuousBatchingConfig(
            page_size=config.block_size,
            num_blocks=config.num_kv_blocks - 1,
            max_batch_tokens=config.max_num_batched_tokens,
            max_requests_per_batch=config.max_num_seqs,
            allow_block_sharing=False,
            max_memory_percent=1.0,
        )
        generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]
        manager = network.init_continuous_batching(generation_config=generation, continuous_batching_config=settings)
        return manager._create_batch_processor()

    return make


def theirs(case: Case, processor: Any) -> Iterator[Step]:  # noqa: ANN401 -- Transformers' processor
    """Yield what Transformers schedules."""
    from transformers.generation.continuous_batching.requests import RequestState

    due, now = list(case.requests), 0
    while due or processor.has_pending_requests():
        while due and due[0].arrival_ns <= now:
            request = due.pop(0)
            state = RequestState(
                str(request.request_id),
                [1] * request.num_prompt_tokens,
                max_new_tokens=request.num_output_tokens,
                eos_token_id=-1,
            )
            processor.scheduler.add_waiting_request(state)
        now += 1
        if not processor.has_pending_requests():
            continue
        assert processor.prepare_next_batch()
        batch = processor.inputs_and_outputs.requests_in_batch
        yield tuple((int(b.state.request_id), b.query_length, b.state.position_offset - b.query_length) for b in batch)
        processor.update_batch()


def ours(case: Case, *, together: bool = False) -> Iterator[Step]:
    """Yield what we schedule, decodes one by one or as many together as no arrival disturbs."""
    scheduler, due, now = make_scheduler(case.requests, case.config), list(case.requests), 0
    assert isinstance(scheduler, TransformersScheduler)
    while due or scheduler.has_unfinished:
        while due and due[0].arrival_ns <= now:
            scheduler.add(due.pop(0).request_id)
        if not scheduler.has_unfinished:
            now += 1
            continue
        step = scheduler.schedule()
        until = due[0].arrival_ns - now if due else step.max_num_steps
        number = min(step.max_num_steps, until) if together else 1
        for repeated in range(number):
            computed = step.num_computed_tokens + repeated
            yield tuple(zip(step.requests.tolist(), step.num_new_tokens.tolist(), computed.tolist(), strict=True))
        scheduler.complete(step, number)
        now += number


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_same_schedule_as_transformers(first_seed: int, make_processor: Callable[[SchedulerConfig], Any]) -> None:
    """Every step holds the same requests, in the same order, with the same new and computed tokens."""
    num_started_over = 0
    for seed in range(first_seed, first_seed + 20):
        case = random_case(seed)
        expected = list(theirs(case, make_processor(case.config)))
        for together in (False, True):
            for index, (found, step) in enumerate(zip(ours(case, together=together), expected, strict=True)):
                assert found == step, f"seed {seed}, step {index}, together {together}: {case.config}"
        starts = [request for step in expected for request, _new, computed in step if computed == 0]
        num_started_over += len(starts) - len(case.requests)
    assert num_started_over > 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"policy": "priority"}, "policy"),
        ({"watermark": 0.1}, "watermark"),
        ({"scheduler_reserve_full_isl": False}, "scheduler_reserve_full_isl"),
        ({"async_scheduling": True}, "async_scheduling"),
        ({"kv_cache_groups": (KVCacheGroup(AttentionKind.SLIDING_WINDOW, 64),)}, "full attention"),
    ],
)
def test_settings_of_vllms_scheduler_are_refused(settings: dict[str, Any], named: str) -> None:
    """What Transformers' scheduler has not is refused by its name, in one line."""
    with pytest.raises(InvalidInputError, match=named) as refused:
        make_scheduler((Request(0, 0, 8, 4),), _config(20, **settings))
    assert "\n" not in str(refused.value)
