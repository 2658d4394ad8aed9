"""Our schedule against vLLM's own scheduler, step for step, without a model and in virtual time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dooly.kv_cache_groups import AttentionKind
from dooly.latency import LatencyBackend, LinearLatency
from dooly.simulation import SchedulerConfig, Workload, simulate
from dooly.simulation._scheduler import Scheduler
from dooly.simulation._speculative_scheduler import SpeculativeScheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dooly.batch import Batch
    from dooly.simulation._steps import Progress

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")]
CASES_A_TEST = 20
STEP_NS = 7


@dataclass
class Constant(LatencyBackend):
    """A latency backend to which all steps are alike."""

    ns: int

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        assert batch.num_reqs
        return self.ns


def assert_equal(found: Iterable[object], expected: Iterable[object], case: str) -> None:
    """Assert that two runs are equal; name the first step that is not."""
    for index, (ours, theirs) in enumerate(zip_longest(found, expected)):
        assert ours == theirs, f"{case}: step {index}"


@pytest.mark.parametrize("first_seed", range(0, 120, CASES_A_TEST))
def test_same_schedule_as_vllm(first_seed: int, oracle: Any, make_vllm_scheduler: Callable[[SchedulerConfig], Any]) -> None:  # noqa: ANN401
    """Every step holds the same requests, in the same order, with the same new and computed tokens."""
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case = oracle.random_case(seed)
        expected = list(oracle.vllm_steps(case, make_vllm_scheduler(case.config)))
        assert_equal(oracle.our_steps(case), expected, f"seed {seed}: {case.config}")
        assert_equal(oracle.our_steps_taken_together(case), expected, f"seed {seed}, taken together: {case.config}")


@pytest.mark.parametrize("first_seed", range(0, 120, CASES_A_TEST))
def test_same_schedule_as_vllm_ahead(
    first_seed: int,
    oracle: Any,  # noqa: ANN401 -- a module
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
) -> None:
    """The same where the next step is scheduled while one runs, as the engine does by itself."""
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case = oracle.random_case(seed, ahead=True)
        expected = oracle.vllm_steps_ahead(case, make_vllm_scheduler(case.config))
        assert_equal(oracle.our_steps_ahead(case), expected, f"seed {seed}: {case.config}")


@pytest.mark.parametrize(
    ("draw", "first_seed"),
    [
        *[("random_cache_case", seed) for seed in range(0, 400, CASES_A_TEST)],
        *[("random_priority_case", seed) for seed in range(0, 100, CASES_A_TEST)],
        *[("random_conversation_case", seed) for seed in range(0, 100, CASES_A_TEST)],
        *[("random_speculative_case", seed) for seed in range(0, 200, CASES_A_TEST)],
        *[("random_limits_case", seed) for seed in range(0, 120, CASES_A_TEST)],
    ],
)
def test_same_schedule_as_vllm_with_its_own_kv_cache_groups(
    draw: str,
    first_seed: int,
    oracle: Any,  # noqa: ANN401 -- a module
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
) -> None:
    """The same where prompts begin alike or go on, layers keep windows, chunks or states, with priorities or drafts."""
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case = getattr(oracle, draw)(seed)
        scheduler, said = make_vllm_scheduler(case.config), f"seed {seed}: {case.config}"
        if case.config.async_scheduling:
            assert_equal(oracle.our_steps_ahead(case), oracle.vllm_steps_ahead(case, scheduler), said)
        else:
            expected = list(oracle.vllm_steps(case, scheduler))
            assert_equal(oracle.our_steps(case), expected, said)
            assert_equal(oracle.our_steps_taken_together(case), expected, f"taken together, {said}")


@pytest.mark.parametrize(
    "draw",
    [f"random_{name}case" for name in ("", "cache_", "priority_", "conversation_", "speculative_", "limits_")],
)
@pytest.mark.parametrize("first_seed", range(0, 60, CASES_A_TEST))
def test_same_times_as_vllm_ahead(
    draw: str,
    first_seed: int,
    oracle: Any,  # noqa: ANN401 -- a module
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A simulation, decodes taken together, gives every request the times that vLLM's scheduler does in steps of one length."""
    monkeypatch.setattr("dooly.simulation._simulator._MANY", 1)
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case = getattr(oracle, draw)(seed, ahead=True)
        requests = [replace(request, arrival_ns=5 * request.arrival_ns) for request in case.requests]
        case = oracle.Case(requests, case.config)
        expected = oracle.vllm_times_ahead(case, make_vllm_scheduler(case.config), STEP_NS)
        for latency in (Constant(STEP_NS), LinearLatency(STEP_NS)):  # in Python, and compiled where that can be
            rows = simulate(Workload(tuple(requests), f"seed {seed}"), latency, case.config).rows
            found = [tuple(round(1e9 * s) for s in (row.scheduled_s, row.first_token_s, row.finish_s)) for row in rows]
            assert found == expected, f"seed {seed}: {latency}: {case.config}"


def test_cases_cover_every_rule(oracle: Any) -> None:  # noqa: ANN401 -- a module
    """The random cases preempt, split prompts, resume while others wait, and run decodes together, each many times."""
    num_with_preemption = num_with_chunks = num_with_runs = 0
    for seed in range(120):
        case = oracle.random_case(seed)
        scheduler = Scheduler(case.requests, case.config)
        has_chunk = has_run = False
        for _ in oracle.arrivals(case, scheduler.add, partial(getattr, scheduler, "has_unfinished")):
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


def test_cases_cover_every_cache(oracle: Any) -> None:  # noqa: ANN401 -- a module
    """The random caches find what others computed and what preempted requests did, with every kind of group, several times."""
    found: Counter[str] = Counter()
    for seed in range(400):
        case = oracle.random_cache_case(seed)
        scheduler = Scheduler(case.requests, case.config)
        seen: set[int] = set()
        finds: set[str] = set()
        for _ in oracle.arrivals(case, scheduler.add, partial(getattr, scheduler, "has_unfinished")):
            waiting = set(scheduler.waiting)
            step = scheduler.schedule()
            for request, computed in zip(step.requests.tolist(), step.num_computed_tokens.tolist(), strict=True):
                if request in waiting and computed:
                    finds.add("resumed" if request in seen else "shared")
                seen.add(request)
            scheduler.complete(step)
        found.update(f"{group.kind.value} {find}" for group in {*case.config.kv_cache_groups} for find in finds)
    assert len(found) == 2 * len(AttentionKind)
    assert min(found.values()) >= 3, found


def test_cases_cover_many_requests_at_once(oracle: Any) -> None:  # noqa: ANN401 -- a module
    """Among the random limits are steps of more than 256 requests, and cases in which prompts wait for their step."""
    largest = []
    num_held_back = 0
    for seed in range(120):
        case = oracle.random_limits_case(seed)
        run = oracle.our_steps_ahead if case.config.async_scheduling else oracle.our_steps
        steps = list(run(case))
        largest.append(max(len(step.batch) for step in steps))
        at_once = replace(case.config, prefill_schedule_interval=1)
        num_held_back += steps != list(run(oracle.Case(case.requests, at_once)))
    assert sum(size > 256 for size in largest) >= 3
    assert num_held_back >= 10


class Watched(SpeculativeScheduler):
    """A scheduler that notes what its steps were made of."""

    seen: set[str]

    def retire(self, progress: Progress) -> Progress:
        """Note what the oldest step under way holds, and brings about."""
        step, known = self._flights[0], self._num_tokens.copy()
        is_verified = step.num_verified > 0
        num_drafted = self._config.speculative.num_speculative_tokens  # type: ignore[union-attr]
        found = {
            "filled up": step.num_drafts > step.num_verified,
            "under way while preempted": step.num_preemptions != self._num_preempted[step.requests],
            "cut short": is_verified & (step.num_verified < num_drafted),
        }
        progress = super().retire(progress)
        found["accepted"] = self._num_tokens > known + 1
        found["preempted"] = np.array(self.num_preemptions > 0)
        self.seen = getattr(self, "seen", set()) | {name for name, flags in found.items() if flags.any()}
        return progress


def test_cases_cover_every_draft(oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401 -- a module
    """The random drafts are accepted, cut short, preempted, so while they are under way, and filled up, many times each."""
    counts: Counter[str] = Counter()
    made: list[Watched] = []
    monkeypatch.setattr(oracle, "make_scheduler", lambda *case: made.append(Watched(*case)) or made[-1])
    for seed in range(200):
        case = oracle.random_speculative_case(seed)
        run = oracle.our_steps_ahead if case.config.async_scheduling else oracle.our_steps
        assert sum(len(step.finished) for step in run(case)) == len(case.requests)
        counts.update(made[-1].seen)
    assert len(counts) == 5
    assert min(counts.values()) >= 20, counts


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("first_seed", range(0, 100, CASES_A_TEST))
def test_same_schedule_as_vllm_where_prompts_come_from_elsewhere(
    first_seed: int,
    oracle: Any,  # noqa: ANN401
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
    *,
    ahead: bool,
) -> None:
    """A decode engine's every step is vLLM's, with KV caches that come after some steps: half of the cases share beginnings."""
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case, loads = oracle.random_load_case(seed, ahead=ahead)
        ours, theirs = oracle.our_steps_with_loads, oracle.vllm_steps_with_loads
        if ahead:
            ours, theirs = oracle.our_steps_with_loads_ahead, oracle.vllm_steps_with_loads_ahead
        expected = theirs(case, make_vllm_scheduler(case.config), loads)
        assert_equal(ours(case, loads), expected, f"seed {seed}: {case.config}")


@pytest.mark.parametrize("first_seed", range(0, 100, CASES_A_TEST))
def test_same_schedule_as_vllm_where_blocks_are_kept_for_others(
    first_seed: int,
    oracle: Any,  # noqa: ANN401
    make_vllm_scheduler: Callable[[SchedulerConfig], Any],
) -> None:
    """A prefill engine's every step is vLLM's, where the blocks of requests that have ended get free some steps later."""
    for seed in range(first_seed, first_seed + CASES_A_TEST):
        case, delays = oracle.random_send_case(seed)
        expected = oracle.vllm_steps_with_sends(case, make_vllm_scheduler(case.config), delays)
        assert_equal(oracle.our_steps_with_sends(case, delays), expected, f"seed {seed}: {case.config}")
