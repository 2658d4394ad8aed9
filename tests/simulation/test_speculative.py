"""Speculative decoding in virtual time, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError, WorkloadError
from dooly.kv_cache_groups import AttentionKind, KVCacheGroup
from dooly.latency import HostTimes, LatencyBackend
from dooly.predict import default_serving, load_latency_model
from dooly.simulation import Request, SchedulerConfig, StepLog, Workload, scheduler_config, simulate
from dooly.simulation._acceptance import Acceptance
from dooly.simulation._drafted_latency import DraftedLatency
from dooly.speculation import SpeculativeConfig

NS = 1e9


class Constant(LatencyBackend):
    """Every step takes 10 ns."""

    def step_ns(self, _batch: Batch) -> int:
        """Price one step."""
        return 10


def configured(rates: tuple[float, ...], *, ahead: bool = False, **settings: int) -> SchedulerConfig:
    """Return settings of an engine that drafts as many tokens as there are rates."""
    speculative = SpeculativeConfig("ngram_gpu" if ahead else "ngram", len(rates), rates)
    return SchedulerConfig(
        **({"max_model_len": 512, "num_kv_blocks": 1000} | settings), async_scheduling=ahead, speculative=speculative
    )


def served(config: SchedulerConfig, *requests: Request) -> tuple[list[tuple[float, float]], StepLog]:
    """Return the times of each request's first and last token, in nanoseconds, and the steps."""
    log = StepLog()
    rows = simulate(Workload(requests, "by hand"), Constant(), config, steps=log).rows
    return [(round(NS * row.first_token_s), round(NS * row.finish_s)) for row in rows], log


def test_accepted_drafts_save_steps() -> None:
    """Seven tokens take the prompt's step and two of a token and two drafts, all accepted; the last step has one to spare."""
    times, log = served(configured((1.0, 1.0)), Request(0, 0, 20, 8))
    assert times == [(10, 40)]
    assert [(run.num_new_tokens.tolist(), run.num_computed_tokens.tolist()) for run in log.runs] == [
        ([20], [0]),
        ([3], [20]),
        ([3], [23]),
        ([3], [26]),
    ]


def test_rejected_drafts_are_computed_for_nothing() -> None:
    """Without an accepted draft each step brings one token, and the next computes from there."""
    times, log = served(configured((0.0,)), Request(0, 0, 20, 4))
    assert times == [(10, 40)]
    assert [(run.num_new_tokens.tolist(), run.num_computed_tokens.tolist()) for run in log.runs][1:] == [
        ([2], [20]),
        ([2], [21]),
        ([2], [22]),
    ]


def test_a_step_ahead_counts_drafts_as_accepted_until_it_knows() -> None:
    """The step behind one under way starts where that ends if all is accepted; the one behind it knows better."""
    times, log = served(configured((0.0,), ahead=True), Request(0, 0, 20, 4))
    assert times == [(10, 40)]
    assert [run.num_computed_tokens.tolist() for run in log.runs] == [[0], [20], [22], [23]]


def test_a_step_under_way_behind_the_last_token_holds_up_what_comes() -> None:
    """An engine ahead of its tokens runs a step for nothing when more are accepted than it could know."""
    requests = (Request(0, 0, 20, 4), Request(1, 21, 20, 1))
    times, log = served(configured((1.0, 1.0), ahead=True), *requests)
    assert times == [(10, 20), (40, 40)]
    assert len(log.runs) == 4


def test_the_longest_sequence_leaves_no_room_for_drafts() -> None:
    """A step computes nothing behind the last token but one of the model's longest sequence."""
    _, log = served(configured((0.0, 0.0), max_model_len=24), Request(0, 0, 20, 4))
    assert [run.num_new_tokens.tolist() for run in log.runs] == [[20], [3], [2], [1]]


def test_acceptance_depends_on_the_request_and_place_alone() -> None:
    """A request gets the same tokens from each of its steps whoever is served beside it."""
    config = configured((0.7, 0.4, 0.2))
    alone = served(config, Request(7, 0, 20, 100))[1]
    beside = served(config, *(Request(number, 0, 20, 100) for number in range(10)))[1]
    contexts = [run.num_computed_tokens[0] for run in alone.runs]
    together = [run.num_computed_tokens[7] for run in beside.runs if len(run.num_computed_tokens) == 10]
    assert len(together) > 20
    assert together == contexts[: len(together)]


def test_drafts_are_accepted_as_often_as_the_rates_say() -> None:
    """Over many places each position's share is its rate."""
    rates = (0.9, 0.5, 0.05)
    requests = [Request(number, 0, 1, 1) for number in range(100)]
    acceptance = Acceptance(requests, SpeculativeConfig("ngram", 3, rates))
    places = np.arange(100_000)
    accepted = acceptance.of(places % 100, places // 100)
    found = [(accepted > position).mean() for position in range(3)]
    assert found == pytest.approx(rates, abs=0.005)
    assert np.corrcoef(accepted[:-100], accepted[100:])[0, 1] == pytest.approx(0, abs=0.01)


def test_another_seed_draws_anew() -> None:
    """Seeds decide, and equal seeds draw alike."""
    requests, places = [Request(0, 0, 1, 1)], np.arange(64)

    def drawn(seed: int) -> list[int]:
        config = SpeculativeConfig("ngram", 1, (0.5,), seed=seed)
        return Acceptance(requests, config).of(np.zeros(64, np.int64), places).tolist()

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_drafts_need_room_in_the_cache() -> None:
    """A request whose last tokens fit only without drafts is refused: the engine could wait for ever."""
    with pytest.raises(WorkloadError, match="exceed the KV cache"):
        served(configured((0.5,) * 7, num_kv_blocks=3), Request(0, 0, 28, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kv_cache_groups": (KVCacheGroup(AttentionKind.SLIDING_WINDOW, 64),)}, "all layers have full attention"),
        ({"async_scheduling": True}, "vLLM schedules no step ahead with ngram"),
        ({"long_prefill_token_threshold": 2}, "must have room for a token and its 3 drafts"),
    ],
)
def test_settings_that_the_engine_does_not_take_are_refused(settings: dict[str, object], message: str) -> None:
    """Each is named with what to do."""
    with pytest.raises(InvalidInputError, match=message):
        replace(configured((0.5, 0.5, 0.5)), **settings)


def test_a_drafter_takes_its_passes_beside_the_model() -> None:
    """Three passes of a tenth: one over the step's tokens, two over a token of each request."""
    seen: list[Batch] = []

    class ByTokens(LatencyBackend):
        def step_ns(self, batch: Batch) -> int:
            seen.append(batch)
            return 1000 * batch.num_tokens

    config = SpeculativeConfig("eagle3", 3, (0.5,) * 3, draft_cost=0.1)
    latency = DraftedLatency(ByTokens(), config)
    assert latency.step_ns(Batch((4, 20), (9, 0), 1, (3, 0))) == 24_000 + 2400 + 2 * 200
    assert (seen[1].num_new_tokens, seen[1].num_computed_tokens) == ((1, 1), (13, 20))
    assert DraftedLatency(ByTokens(), SpeculativeConfig("ngram", 3, (0.5,) * 3)).step_ns(Batch((4,), (9,), 0, (3,))) == 4000


def test_what_a_drafter_is_told_is_a_time() -> None:
    """A price of one of its passes is judged as a step's is."""

    class OfThePast(LatencyBackend):
        def step_ns(self, batch: Batch) -> int:
            return 1000 if batch.num_tokens > 1 else -1

    latency = DraftedLatency(OfThePast(), SpeculativeConfig("eagle3", 3, (0.5,) * 3, draft_cost=0.1))
    with pytest.raises(InvalidInputError, match=r"OfThePast\.step_ns: returned -1"):
        latency.step_ns(Batch((4,), (9,), 0, (3,)))


def test_a_step_of_decodes_with_all_drafts_is_launched_as_one_graph() -> None:
    """A host that captured such steps launches them whole; one that is cut short, or has a prompt, in pieces."""
    host = HostTimes(whole_ns=20, pieces_ns=50, plain_ns=90)
    workload = Workload((Request(0, 0, 20, 4),), "by hand")
    log = StepLog()
    simulate(workload, Constant(), configured((0.0, 0.0), max_model_len=24), host, steps=log)
    assert np.diff([0, *(run.ends_ns[0] for run in log.runs)]).tolist() == [50, 20, 50, 50]


def test_a_head_caches_as_much_as_a_layer() -> None:
    """The cache has room for fewer blocks beside it, where the number is not given."""
    model = find_model("llama-3.1-8b")

    def num_blocks(**settings: Any) -> int:  # noqa: ANN401 - the engine's
        serving = default_serving(model, "h200", **settings)
        return scheduler_config(serving, load_latency_model(model=model, serving=serving, hardware="h200")).num_kv_blocks

    head = SpeculativeConfig("mtp", 1, (0.8,), draft_cost=0.05)
    assert num_blocks(speculative_config=head) == num_blocks() * 32 // 33
    assert num_blocks(speculative_config=SpeculativeConfig("ngram", 1, (0.8,))) == num_blocks()
    assert num_blocks(speculative_config=head, num_gpu_blocks_override=5000) == 5000
