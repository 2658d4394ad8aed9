"""Timelines worked out by hand, and what must hold for every workload."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly.errors import InvalidInputError, WorkloadError
from dooly.latency import LatencyBackend
from dooly.simulation import Request, RequestTimes, SchedulerConfig, Workload, simulate
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.batch import Batch

MS = 1_000_000


class StepwiseLatency(LatencyBackend):
    """Prices every step on its own: 1 ms, 10 us a new token, 100 ns a cached token, 1 us a new request; runs by repetition."""

    def __init__(self) -> None:
        self.num_new_tokens = 0

    def step_ns(self, batch: Batch) -> int:
        """Price one step and count its tokens."""
        self.num_new_tokens += batch.num_tokens
        return MS + 10_000 * batch.num_tokens + 100 * sum(batch.num_computed_tokens) + 1_000 * batch.num_new_requests

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Price each step of the run as `step_ns` does, without counting: the simulator may drop the last of them."""
        fixed = MS + 10_000 * len(num_computed_tokens)
        return np.array([fixed + 100 * int((num_computed_tokens + step).sum()) for step in range(num_steps)])


class ConstantLatency(LatencyBackend):
    """Takes 10 ms for every step."""

    def step_ns(self, batch: Batch) -> int:
        """Price one step."""
        assert batch.num_reqs
        return 10 * MS


def workload(*rows: tuple[float, int, int]) -> Workload:
    """Make a workload of (arrival in ms, prompt tokens, output tokens)."""
    return Workload(tuple(Request(i, round(ms * MS), prompt, output) for i, (ms, prompt, output) in enumerate(rows)), "test")


def times_ms(rows: tuple[RequestTimes, ...]) -> list[tuple[float, float, float]]:
    """Return (scheduled, first token, finish) of each row in ms."""
    return [(round(r.scheduled_s * 1e3, 6), round(r.first_token_s * 1e3, 6), round(r.finish_s * 1e3, 6)) for r in rows]


AMPLE = SchedulerConfig(max_model_len=1000, num_kv_blocks=1001, max_num_seqs=4, max_num_batched_tokens=100)


def test_one_request_takes_a_step_a_token() -> None:
    """A request that arrives at 5 ms gets its first token one step later and each further one a step after that."""
    result = simulate(workload((5, 10, 4)), ConstantLatency(), AMPLE)
    assert times_ms(result.rows) == [(5, 15, 45)]
    assert (result.num_steps, result.num_preemptions) == (4, 0)


def test_latency_is_that_of_each_steps_batch() -> None:
    """The prompt step is priced with its tokens, the decode steps with contexts of 10 and 11 tokens."""
    result = simulate(workload((0, 10, 3)), StepwiseLatency(), AMPLE)
    prompt_ms = 1 + 10 * 0.01 + 0.001
    decodes_ms = (1 + 0.01 + 10 * 0.0001) + (1 + 0.01 + 11 * 0.0001)
    assert times_ms(result.rows) == [(0, round(prompt_ms, 6), round(prompt_ms + decodes_ms, 6))]


def test_arrival_during_a_step_waits_for_its_end() -> None:
    """A request arriving at 25 ms joins at 30 ms; one arriving at the very end of a step joins the next step at once."""
    result = simulate(workload((0, 10, 9), (25, 10, 2), (60, 10, 1)), ConstantLatency(), AMPLE)
    assert times_ms(result.rows) == [(0, 10, 90), (30, 40, 50), (60, 70, 70)]
    assert result.num_steps == 9


def test_idle_engine_jumps_to_the_next_arrival() -> None:
    """Between the first finish and the next arrival no step is taken."""
    result = simulate(workload((0, 1, 1), (1000, 1, 2)), ConstantLatency(), AMPLE)
    assert times_ms(result.rows) == [(0, 10, 10), (1000, 1010, 1020)]
    assert result.num_steps == 3


def test_long_prompt_is_computed_in_chunks_beside_decodes() -> None:
    """A 250-token prompt beside one decode gets 99, 99 and 52 of the 100-token budget."""
    result = simulate(workload((0, 1, 5), (10, 250, 2)), ConstantLatency(), AMPLE)
    assert times_ms(result.rows) == [(0, 10, 50), (10, 40, 50)]


def test_requests_beyond_max_num_seqs_wait_for_a_finish() -> None:
    """With two slots the third request starts when the first, of two tokens, has finished."""
    config = SchedulerConfig(max_model_len=100, num_kv_blocks=100, max_num_seqs=2, max_num_batched_tokens=100)
    result = simulate(workload((0, 1, 2), (0, 1, 4), (0, 1, 1)), ConstantLatency(), config)
    assert times_ms(result.rows) == [(0, 10, 20), (0, 10, 40), (20, 30, 30)]


def test_preempted_request_recomputes_all_its_tokens() -> None:
    """Three usable blocks of 4; both requests hold one; at step 2 only the first gets the third block; the second starts over.

    Steps: 1 both prompts of 4; 2 request 0 takes the last block, request 1 is evicted with one token out; 3 to 5 fill that block,
    request 0 finishing by its fifth token at step 5; 6 request 1 recomputes 4 + 1 tokens and gets its second token; 7 its third.
    """
    config = SchedulerConfig(max_model_len=12, num_kv_blocks=4, max_num_seqs=2, max_num_batched_tokens=100, block_size=4)
    result = simulate(workload((0, 4, 5), (0, 4, 3)), ConstantLatency(), config)
    assert result.num_preemptions == 1
    assert times_ms(result.rows) == [(0, 10, 50), (0, 10, 70)]


def test_watermark_keeps_a_second_request_out() -> None:
    """With two of four blocks to be kept free, the second request waits for the first's finish and is never evicted."""
    config = SchedulerConfig(12, num_kv_blocks=4, max_num_seqs=2, max_num_batched_tokens=100, block_size=4, watermark=0.6)
    result = simulate(workload((0, 4, 5), (0, 4, 3)), ConstantLatency(), config)
    assert result.num_preemptions == 0
    assert times_ms(result.rows) == [(0, 10, 50), (50, 60, 80)]


def test_too_long_for_the_model_is_refused() -> None:
    """A request of 1001 tokens in all is refused before anything is simulated, by name and number."""
    with pytest.raises(WorkloadError, match=r"request 1: 900 prompt \+ 101 output tokens exceed max_model_len 1000"):
        simulate(workload((0, 1, 1), (0, 900, 101)), ConstantLatency(), AMPLE)


def test_too_long_for_the_cache_is_refused() -> None:
    """Two usable blocks of 4 hold 8 tokens: a request of 9 fits, as its last token is never computed; one of 10 does not."""
    config = SchedulerConfig(max_model_len=100, num_kv_blocks=3, max_num_seqs=2, max_num_batched_tokens=100, block_size=4)
    assert simulate(workload((0, 5, 4)), ConstantLatency(), config).num_steps == 4
    with pytest.raises(WorkloadError, match=r"request 0: 5 prompt \+ 5 output tokens exceed the KV cache of 2 blocks of 4"):
        simulate(workload((0, 5, 5)), ConstantLatency(), config)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"num_kv_blocks": 1}, "num_kv_blocks must be at least 2"),
        ({"max_num_batched_tokens": 10}, "must be at least max_num_seqs 64"),
        ({"enable_chunked_prefill": False, "max_model_len": 4000}, "without chunked prefill"),
        ({"long_prefill_token_threshold": 101}, "must lie in 0..100"),
        ({"watermark": 1.0}, "watermark must lie in"),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], rule: str) -> None:
    """Settings that vLLM refuses are refused here, by name."""
    with pytest.raises(InvalidInputError, match=rule):
        SchedulerConfig(**{"max_model_len": 100, "num_kv_blocks": 100, **settings})


@st.composite
def cases(draw: st.DrawFn) -> tuple[Workload, SchedulerConfig]:
    """Draw a workload and settings under which each request can finish."""
    row = st.tuples(st.integers(0, 40), st.integers(1, 60), st.integers(1, 40))
    rows = sorted(draw(st.lists(row, min_size=1, max_size=12)))
    block_size = draw(st.sampled_from([1, 4, 16]))
    fewest_blocks = max(math.ceil((prompt + output - 1) / block_size) for _, prompt, output in rows)
    max_num_seqs = draw(st.integers(1, 8))
    config = SchedulerConfig(
        max_model_len=100,
        num_kv_blocks=1 + max(1, fewest_blocks) + draw(st.integers(0, 20)),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + draw(st.integers(0, 80)),
        block_size=block_size,
        long_prefill_token_threshold=draw(st.sampled_from([0, 5])),
        scheduler_reserve_full_isl=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.2])),
        prefill_schedule_interval=draw(st.sampled_from([1, 1, 3])),
    )
    return workload(*rows), config


def simulate_stepwise(served: Workload, config: SchedulerConfig) -> tuple[dict[int, list[int]], int, int]:
    """Serve a workload one step at a time; return each request's times in ns, the steps and the tokens computed."""
    scheduler, latency = Scheduler(served.requests, config), StepwiseLatency()
    times: dict[int, list[int]] = {}
    now, num_arrived, num_steps = 0, 0, 0
    while num_arrived < len(served.requests) or scheduler.has_unfinished:
        if not scheduler.has_unfinished:
            now = max(now, served.requests[num_arrived].arrival_ns)
        while num_arrived < len(served.requests) and served.requests[num_arrived].arrival_ns <= now:
            scheduler.add(num_arrived)
            num_arrived += 1
        step = scheduler.schedule()
        if not step.requests.size:
            continue  # the only one that decodes gave way beside a prompt that is held back
        for request in step.first_scheduled:
            times[request] = [now]
        now += latency.step_ns(step.to_batch())
        num_steps += 1
        progress = scheduler.complete(step)
        for request in [*progress.first_token.tolist(), *progress.finished.tolist()]:
            times[request].append(now)
    return times, num_steps, latency.num_new_tokens


@given(cases())
@settings(max_examples=300)
def test_steps_taken_together_change_nothing(case: tuple[Workload, SchedulerConfig]) -> None:
    """Taking decode steps together gives exactly the times of taking one at a time."""
    served, config = case
    result = simulate(served, StepwiseLatency(), config)
    times, num_steps, _ = simulate_stepwise(served, config)
    assert result.num_steps == num_steps
    assert [(r.scheduled_s, r.first_token_s, r.finish_s) for r in result.rows] == [
        tuple(ns / 1e9 for ns in times[position]) for position in range(len(served.requests))
    ]


@given(cases())
@settings(max_examples=100)
def test_every_token_is_computed_once_without_preemption(case: tuple[Workload, SchedulerConfig]) -> None:
    """Steps compute each request's tokens but the last exactly once; preemption adds to them, and caching takes that off."""
    served, config = case
    needed = sum(r.num_prompt_tokens + r.num_output_tokens - 1 for r in served.requests)
    for caches in (True, False):
        config = replace(config, enable_prefix_caching=caches)
        result = simulate(served, StepwiseLatency(), config)
        _, _, num_computed = simulate_stepwise(served, config)
        assert num_computed == needed if result.num_preemptions == 0 else num_computed >= needed + (not caches)


@given(cases())
@settings(max_examples=100)
def test_requests_start_in_order_of_arrival(case: tuple[Workload, SchedulerConfig]) -> None:
    """First come, first scheduled; and nothing is scheduled before it arrives or finishes in fewer steps than tokens."""
    served, config = case
    rows = simulate(served, StepwiseLatency(), config).rows
    assert [row.scheduled_s for row in rows] == sorted(row.scheduled_s for row in rows)
    for row in rows:
        assert row.arrival_s <= row.scheduled_s < row.first_token_s
        assert row.finish_s - row.scheduled_s >= row.num_output_tokens * 1e-3


@given(cases(), st.integers(1, 10**9))
@settings(max_examples=50)
def test_shifting_arrivals_shifts_all_times(case: tuple[Workload, SchedulerConfig], shift_ns: int) -> None:
    """Only differences between arrivals matter."""
    served, config = case
    later = tuple(
        Request(r.request_id, r.arrival_ns + shift_ns, r.num_prompt_tokens, r.num_output_tokens) for r in served.requests
    )
    first_ns = served.requests[0].arrival_ns
    at_zero = tuple(
        Request(r.request_id, r.arrival_ns - first_ns, r.num_prompt_tokens, r.num_output_tokens) for r in served.requests
    )
    shifted = simulate(Workload(later, "later"), StepwiseLatency(), config)
    base = simulate(Workload(at_zero, "at zero"), StepwiseLatency(), config)
    moved_ns = first_ns + shift_ns
    assert [round(r.finish_s * 1e9) - moved_ns for r in shifted.rows] == [round(r.finish_s * 1e9) for r in base.rows]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("wrong", [1e6, math.nan, math.inf, -1, 10**19, None, "1", np.float64(3)], ids=str)
@pytest.mark.parametrize("method", ["step_ns", "decode_run_ns", "repeated"])
def test_what_is_no_time_is_refused(method: str, wrong: Any, ahead: bool) -> None:  # noqa: ANN401, FBT001 - a case
    """A predictor that answers with seconds, a negative time or none at all is told which method did, in one line."""

    class Wrong(LatencyBackend):
        def step_ns(self, batch: Batch) -> int:
            is_asked = method == "step_ns" or (method == "repeated" and not batch.num_new_requests)
            return wrong if is_asked else MS  # type: ignore[no-any-return]

        if method == "decode_run_ns":

            def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
                return np.array([wrong] * num_steps) if num_computed_tokens.size else num_computed_tokens

    config = SchedulerConfig(max_model_len=2048, num_kv_blocks=4096, async_scheduling=ahead)
    named = "decode_run_ns" if method == "decode_run_ns" else "step_ns"
    with pytest.raises(InvalidInputError, match=rf"^Wrong\.{named}: returned .*: nanoseconds, at least 0$"):
        simulate(workload((0, 64, 11)), Wrong(), config)


def test_a_run_of_fewer_times_than_steps_is_refused() -> None:
    """A predictor that prices fewer decodes than it was asked for is told how many it was."""

    class Short(ConstantLatency):
        def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
            return np.full(num_steps - 1, len(num_computed_tokens))

    with pytest.raises(InvalidInputError, match=r"^Short\.decode_run_ns: returned .*; return an array of 10 integers"):
        simulate(workload((0, 64, 11)), Short(), SchedulerConfig(max_model_len=2048, num_kv_blocks=4096))
