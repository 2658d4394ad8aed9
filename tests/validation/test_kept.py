from __future__ import annotations

import json
import lzma
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbstore import Environment
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.kv_policy import KVPolicy
from dooly.latency import HostTimes, LatencyBackend
from dooly.simulation import RequestTimes, SimulationResult, parse_workload
from dooly.speculation import SpeculativeConfig
from dooly.validation import KeptRuns, MachineState, ServedRun, StepRun, read_runs, step_report, validate_kept, write_runs
from dooly.validation._kept import _changes, _steps
from dooly.validation._steps import _steps_ahead

if TYPE_CHECKING:
    from pathlib import Path

    from dooly.batch import Batch


ENVIRONMENT = Environment(
    device="NVIDIA H200",
    device_kind="cuda",
    driver="580.0",
    torch_version="2.11.0",
    engine="vllm",
    engine_version="0.26.0",
    attention_backend="FLASH_ATTN",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=None,
)
"""One made-up environment."""


def _kept(steps: tuple[StepRun, ...]) -> KeptRuns:
    rows = (RequestTimes(0, 0.0, 5, 2, 0.1, 0.2, 0.3), RequestTimes(1, 0.123456789, 7, 1, 0.2, 0.3, 0.3))
    run = ServedRun(SimulationResult(rows, len(steps), 0, 0.3), steps)
    return KeptRuns(
        "m",
        "poisson:rate=1,requests=2",
        ServingConfig(max_num_seqs=7),
        ENVIRONMENT,
        99,
        MachineState(0.1, (1e6, 2e6)),
        (run, run),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Requests, steps, settings and environment come back equal, to the nanosecond."""
    steps = (StepRun(0.1, 0.05, ((0, 5, 0),)), StepRun(0.2, 0.05, ((0, 1, 5), (1, 7, 0))))
    path = tmp_path / "runs.json.xz"
    write_runs(_kept(steps), path)
    assert read_runs(path) == _kept(steps)
    assert [p.name for p in tmp_path.iterdir()] == ["runs.json.xz"]


def test_users_of_a_closed_loop_send_at_other_times_in_each_run(tmp_path: Path) -> None:
    """Runs of one workload need the same lengths; when requests arrived is each run's own."""
    kept = _kept(())
    run = kept.runs[0]
    later = tuple(replace(row, arrival_s=row.arrival_s + 0.01) for row in run.result.rows)
    both = replace(kept, runs=(run, replace(run, result=replace(run.result, rows=later))))
    path = tmp_path / "runs.json.xz"
    write_runs(both, path)
    assert read_runs(path).requests == (((0.0, 5, 2), (0.123456789, 7, 1)), ((0.01, 5, 2), (0.133456789, 7, 1)))


works = st.dictionaries(st.integers(0, 4), st.tuples(st.integers(1, 3), st.integers(0, 6)), max_size=5)


@given(st.lists(works, max_size=8))
def test_every_step_comes_back(drawn: list[dict[int, tuple[int, int]]]) -> None:
    """Whatever steps work on, joins and leavings, chunks and preemptions, is read as it was, but for the order of requests."""
    steps = [StepRun(0.5, 0.25, tuple((place, *work) for place, work in each.items())) for each in drawn]
    found = list(_steps(_changes(steps)))
    assert [sorted(step.work) for step in found] == [sorted(step.work) for step in steps]


entries = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 6)), max_size=6)


@given(st.lists(entries, max_size=6))
def test_requests_that_a_step_works_on_twice_come_back(drawn: list[list[tuple[int, int, int]]]) -> None:
    """An engine that schedules ahead may give one step two schedules: both entries of a request are kept."""
    steps = [StepRun(0.5, 0.25, tuple(each)) for each in drawn]
    found = list(_steps(_changes(steps)))
    assert [sorted(step.work) for step in found] == [sorted(step.work) for step in steps]


def test_runs_that_cannot_be_judged_by_are_refused(tmp_path: Path) -> None:
    """No run, and runs of different requests, are refused: when made, and when read from a file."""
    kept = _kept(())
    rows = (*kept.runs[0].result.rows[:1], replace(kept.runs[0].result.rows[1], num_prompt_tokens=8))
    other = replace(kept.runs[0], result=replace(kept.runs[0].result, rows=rows))
    for runs, rule in (((), "no run; keep at least one"), ((kept.runs[0], other), "served different requests")):
        with pytest.raises(InvalidInputError, match=rule):
            replace(kept, runs=runs)
    path = tmp_path / "runs.json.xz"
    write_runs(kept, path)
    path.write_bytes(lzma.compress(json.dumps(json.loads(lzma.decompress(path.read_bytes())) | {"runs": []}).encode()))
    with pytest.raises(InvalidInputError, match=r"runs.json.xz: holds no kept runs .*no run"):
        read_runs(path)


@pytest.mark.parametrize(
    ("name", "simulated"),
    [("speculative_config", SpeculativeConfig("ngram", 1, (0.5,))), ("kv_policy", KVPolicy("snapkv", 0.5))],
)
def test_what_is_only_simulated_is_not_kept(name: str, simulated: object) -> None:
    """Settings that no real run has are refused when runs are kept, and not written to be refused when they are read."""
    kept = _kept(())
    with pytest.raises(InvalidInputError, match=f"KeptRuns: serving has a {name}"):
        replace(kept, serving=replace(kept.serving, **{name: simulated}))


def test_conversations_are_not_judged_by_kept_runs() -> None:
    """A file does not say which requests waited for others."""
    workload = parse_workload("poisson:rate=1,requests=4,prompt=8,output=2,turns=2,think=1")
    with pytest.raises(InvalidInputError, match="has conversations, whose turns kept runs do not hold"):
        validate_kept(find_model("smollm2-135m"), None, workload, _kept(()), "h200")


class Law(LatencyBackend):
    """A latency backend: 1 ms a step, 10 us a new token, 1 us a computed token and 1 ms a request that is new."""

    def step_ns(self, batch: Batch) -> int:
        """Return what a step takes by the law."""
        tokens = 10_000 * batch.num_tokens + 1_000 * sum(batch.num_computed_tokens)
        return 1_000_000 * (1 + batch.num_new_requests) + tokens


def test_kept_steps_judge_latencies() -> None:
    """Each step's prediction is for the batch that it had, requests new once a run; a step without work is left out."""
    by_law = ((((0, 100, 0),), 3e-3), (((0, 1, 100), (1, 50, 0)), 2.61e-3), (((0, 1, 101), (1, 1, 50)), 1.171e-3))
    exact = tuple(StepRun(float(i), seconds, work) for i, (work, seconds) in enumerate(by_law))
    kept = _kept((*exact, StepRun(9.0, 0.5, ())))
    report = step_report(kept.runs, Law())
    assert report.num_steps == 6
    assert (report.mape, report.median_error, report.mean_error) == pytest.approx((0, 0, 0), abs=1e-9)
    slower = tuple(replace(step, duration_s=2 * step.duration_s) for step in exact)
    report = step_report(_kept(slower).runs, Law())
    assert (report.mape, report.median_error, report.mean_error) == pytest.approx((0.5, 0.5, -0.5))
    with pytest.raises(InvalidInputError, match="hold no step"):
        step_report(_kept(()).runs, Law())


def test_steps_scheduled_ahead_are_judged_from_result_to_result() -> None:
    """A call schedules a step and waits for the one before: by hand, a prompt of 3 ms whose launch takes 5, and two decodes."""
    host = HostTimes(prepare_ns=500_000, whole_ns=1_000_000, pieces_ns=5_000_000, plain_ns=9_000_000, max_captured_tokens=128)
    calls = (
        (0.0, 5.0, ((0, 100, 0),)),  # launched in 5 ms, by when the device is done with it
        (5.0, 1.0, ((0, 1, 100),)),  # launched in 1 ms; runs from 5.5 to 6.61 ms
        (6.1, 0.9, ((0, 1, 101),)),  # launched from 6 to 7 ms, runs from 6.61 to 7.721; the real host was away for 0.1 ms
        (7.0, 0.8, ()),  # waits for it
    )
    steps = tuple(StepRun(begin / 1e3, duration / 1e3, work) for begin, duration, work in calls)
    assert [real for _, real in _steps_ahead(_kept(steps).runs[0], Law(), host)] == pytest.approx([5e-3, 1e-3, 1e-3, 0.8e-3])
    found = [predicted for predicted, _ in _steps_ahead(_kept(steps).runs[0], Law(), host)]
    assert found == pytest.approx([5e-3, 1e-3, 1e-3, 0.721e-3])


def test_decodes_that_run_on_take_no_room() -> None:
    """A step of the same decodes, each one token further, is written as its two times."""
    steps = [StepRun(float(i), 1.0, tuple((place, 1, 100 + place + i) for place in range(50))) for i in range(3)]
    assert [(len(changed), gone) for _, _, changed, gone in _changes(steps)] == [(50, []), (0, []), (0, [])]


@pytest.mark.parametrize("content", [None, b"", b"no xz", lzma.compress(b"{"), lzma.compress(b'{"schema": 1}')])
def test_a_file_that_holds_no_runs_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """The error names the file and what makes one, in one line."""
    path = tmp_path / "runs.json.xz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"runs.json.xz: holds no kept runs .*benchmarks/ground_truth.py") as caught:
        read_runs(path)
    assert "\n" not in str(caught.value)


def test_runs_of_another_schema_are_refused(tmp_path: Path) -> None:
    """A file of a later version is refused by its schema."""
    path = tmp_path / "runs.json.xz"
    path.write_bytes(lzma.compress(b'{"schema": 2}'))
    with pytest.raises(InvalidInputError, match=r"runs.json.xz: .*schema 2 is not 1"):
        read_runs(path)
