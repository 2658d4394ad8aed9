"""Many steps at once: each as it is alone, and what is no step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.batch import Batch
from dooly.engines import find_model
from dooly.errors import InvalidInputError, OutOfDomainError
from dooly.predict import BatchArrays, LatencyModel, default_serving, load_latency_model
from dooly.predict._step_latency import StepLatencies
from dooly.predict._step_parts import StepPart

BATCHES = (
    Batch((1,) * 7, (33, 90, 200, 14, 60, 301, 5)),
    Batch((75,), (0,), 1),
    Batch((40, 30), (0, 0), 2),
    Batch((1, 1, 70), (150, 90, 0), 1),
)
requests = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 400)), min_size=1, max_size=8)


@given(st.lists(requests, min_size=1, max_size=5), st.integers(0, 1))
def test_steps_agree_alone_and_together(latency: LatencyModel, many: list[list[tuple[int, int]]], fresh: int) -> None:
    """`steps_ns` gives each batch what `step_ns` gives it."""
    batches = [Batch(*zip(*pairs, strict=True), fresh) for pairs in many]  # type: ignore[arg-type]
    together = latency.steps_ns(BatchArrays.of(batches))
    assert together.tolist() == [latency.step_ns(batch) for batch in batches]
    assert together.dtype == np.int64


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(1, 20))
def test_a_decode_run_agrees_with_its_steps(latency: LatencyModel, contexts: list[int], num_steps: int) -> None:
    """`decode_run_ns` gives each step what `step_ns` gives its batch."""
    steps = [Batch((1,) * len(contexts), tuple(c + i for c in contexts)) for i in range(num_steps)]
    run = latency.decode_run_ns(np.array(contexts), num_steps)
    assert run.tolist() == [latency.step_ns(batch) for batch in steps]


def test_shares_are_of_sizes() -> None:
    """Layers that take less than their operations make no share negative, and none larger than all."""
    parts = [
        StepPart("q_proj", "family", np.array([3e6, 1e6]), np.zeros(2)),
        StepPart("layer", "measured", np.array([-1e6, 1e6]), np.zeros(2)),
    ]
    steps = StepLatencies.of(parts, np.zeros(2, dtype=bool))
    assert steps.seconds.tolist() == pytest.approx([2e-3, 2e-3])
    assert [share.tolist() for share in (steps.provenance["family"], steps.provenance["measured"])] == [[0.75, 0.5], [0.25, 0.5]]
    assert dict(steps[0].provenance) == {"measured": 0.25, "family": 0.75, "estimated": 0.0}


def test_many_steps_are_priced_as_one_by_one(latency: LatencyModel) -> None:
    """Arrays of batches give what each batch gives alone: seconds, uncertainty, parts and provenance."""
    many = latency.steps(BATCHES)
    assert len(many) == len(BATCHES)
    for index, batch in enumerate(BATCHES):
        one = latency.step(batch)
        assert many[index].breakdown_s == pytest.approx(one.breakdown_s, rel=1e-12)
        assert many[index].provenance == pytest.approx(one.provenance, rel=1e-12)
        assert many[index].by_source_s == pytest.approx(one.by_source_s, rel=1e-12)
        assert many[index].uncertainty_s == pytest.approx(one.uncertainty_s, rel=1e-12)
        assert many.seconds[index] == pytest.approx(latency.step_ns(batch) / 1e9, rel=1e-6)
        assert sum(one.breakdown_s.values()) == pytest.approx(one.seconds)
        assert sum(one.provenance.values()) == pytest.approx(1)
    arrays = BatchArrays.checked([[1, 1, 70]], [[150, 90, 0]])
    assert latency.steps(arrays)[0] == latency.step(Batch((1, 1, 70), (150, 90, 0)))


@pytest.fixture(scope="module")
def captured() -> LatencyModel:
    """The latency model of an engine that captures steps, and takes few requests and tokens."""
    model = find_model("llama-3.1-8b")
    serving = default_serving(model, "h200", max_num_seqs=300, max_num_batched_tokens=1000, max_model_len=4096)
    return load_latency_model(model=model, serving=serving, hardware="h200")


counts = st.tuples(st.integers(1, 400), st.integers(1, 6), st.integers(0, 5000))
wide = counts.map(lambda drawn: Batch((drawn[1],) * drawn[0], (drawn[2],) * drawn[0]))


@given(st.lists(wide, min_size=1, max_size=4))
def test_a_batch_beyond_changes_no_other(captured: LatencyModel, batches: list[Batch]) -> None:
    """Each step takes what it takes alone, whether it or those beside it lie within the limits of steps or beyond."""
    together = captured.steps(batches, extrapolate=True)
    for step, batch in zip(together, batches, strict=True):
        alone = captured.step(batch, extrapolate=True)
        assert step.seconds == pytest.approx(alone.seconds, rel=1e-9)
        assert step.extrapolated == alone.extrapolated


@pytest.mark.parametrize("beyond", [Batch((1,), (100_000,)), Batch((5000,), (0,)), Batch((1,) * 301, (9,) * 301)])
def test_within_the_limits_a_step_is_priced_as_captured(captured: LatencyModel, beyond: Batch) -> None:
    """257 decodes run in the graph of 264, whatever is asked for beside them; so do those of which one's context is beyond."""
    decodes, one = Batch((1,) * 257, (1000,) * 257), captured.step(Batch((1,) * 264, (0,) * 264))
    found = captured.steps([decodes, beyond], extrapolate=True)
    assert found.seconds[0] == pytest.approx(captured.step(decodes).seconds, rel=1e-12)
    name = "model.layers.*.mlp.gate_up_proj"
    longer = captured.step(Batch((1,) * 257, (5000,) + (1000,) * 256), extrapolate=True)
    assert longer.extrapolated
    assert longer.breakdown_s[name] == one.breakdown_s[name] == found[0].breakdown_s[name]


def test_a_step_of_many_costs_what_one_costs(captured: LatencyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at one step works out nothing of the others: going through a run of steps is linear in them."""
    many, seen = captured.decode_run([900] * 8, 50), []
    for name in ("breakdown_s", "provenance"):
        monkeypatch.setattr(StepLatencies, name, property(seen.append))
    assert [step.seconds for step in many] == many.seconds.tolist()
    assert not seen
    assert many[-1] == many[49]
    with pytest.raises(IndexError):
        many[50]


def test_a_run_of_decodes_is_its_steps(latency: LatencyModel) -> None:
    """Consecutive decodes, in seconds, are the steps whose contexts grow by one."""
    run = latency.decode_run([33, 90], 3)
    assert run.seconds == pytest.approx([latency.step(Batch((1, 1), (33 + grown, 90 + grown), 0)).seconds for grown in range(3)])
    assert run.seconds == pytest.approx(latency.decode_run_ns(np.array([33, 90]), 3) / 1e9, rel=1e-6)


def test_only_the_batch_beyond_is_extrapolated(latency: LatencyModel) -> None:
    """One batch beyond the limits makes many a refusal, and asked to extrapolate, is the only one that is flagged."""
    batches = [Batch((100,), (0,)), Batch((100_000,), (0,))]
    with pytest.raises(OutOfDomainError, match="100000 tokens where"):
        latency.steps(batches)
    assert latency.steps(batches, extrapolate=True).extrapolated.tolist() == [False, True]


@pytest.mark.parametrize(
    ("new", "computed", "fresh", "rule"),
    [
        ([1], [0], None, r"shapes \(1,\) and \(1,\); give both"),
        ([[1]], [[0, 1]], None, r"shapes \(1, 1\) and \(1, 2\); give both"),
        ([[1.5]], [[0]], None, "give whole numbers"),
        ([[1]], [[0]], [1, 1], "one a batch"),
        ([[1]], [[-1]], None, "a count is negative"),
        ([[1], [0]], [[0], [0]], None, "a batch has no request"),
        (
            [[1]],
            [[2**63 - 1]],
            None,
            "^BatchArrays: 9223372036854775807 tokens of one request, new or computed; give",
        ),
    ],
)
def test_arrays_that_are_no_batches_are_refused(new: Any, computed: Any, fresh: Any, rule: str) -> None:  # noqa: ANN401
    """The message says what arrays of batches are."""
    with pytest.raises(InvalidInputError, match=rule):
        BatchArrays.checked(new, computed, fresh)


def test_what_is_no_batch_is_refused(latency: LatencyModel) -> None:
    """A list of pairs, which is no batch, is quoted with what to give; so is one among many."""
    for price in (lambda: latency.step([(1, 10)]), lambda: latency.steps([Batch((1,), (10,)), [(1, 10)]])):  # type: ignore[arg-type, list-item]
        with pytest.raises(InvalidInputError, match=r"^step: \[\(1, 10\)\] is no batch; give dooly\.Batch\(num_new_tokens, "):
            price()


def test_no_steps_are_refused(latency: LatencyModel) -> None:
    """No batch, no step and no context of decodes are input errors, and so are halves of them."""
    with pytest.raises(InvalidInputError, match="no batch"):
        latency.steps([])
    for contexts, steps in (([], 1), ([3], 0), ([3], 2.5), ([-1], 1), ([[1]], 1), ([10.5], 1), (["3"], 1)):
        with pytest.raises(InvalidInputError, match=r"decode_run: .* give a whole number of steps from 1"):
            latency.decode_run(contexts, steps)  # type: ignore[arg-type]  # as a caller may
    with pytest.raises(InvalidInputError, match=r"^decode_run: 9223372036854775807 tokens of one request; give at most"):
        latency.decode_run([2**63 - 1], 1)


def test_the_longest_requests_are_beyond(latency: LatencyModel) -> None:
    """A context of as many tokens as a batch may have is a context beyond the limits, and its price is no overflow's."""
    longest = Batch((1, 2**30), (2**30, 2**30))
    with pytest.raises(OutOfDomainError):
        latency.step(longest)
    assert latency.step(longest, extrapolate=True).seconds > 1e3
