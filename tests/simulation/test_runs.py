"""Real runs in other tools' files: what is read of them, as times and as workloads, and how two runs compare."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dooly.errors import InvalidInputError, WorkloadError
from dooly.simulation import RequestTimes, SimulationResult, compare_runs, read_run, read_workload
from dooly.simulation._token_gaps import TokenGaps

if TYPE_CHECKING:
    from pathlib import Path

STAMPED: list[dict[str, Any]] = [
    {"input_toks": 10, "output_toks": 3, "queued_ts": 100.5, "scheduled_ts": 100.6, "first_token_ts": 101, "last_token_ts": 102},
    {"input_toks": 20, "output_toks": 1, "queued_ts": 100.0, "first_token_ts": 100.25, "last_token_ts": 100.25},
]
BENCH: dict[str, Any] = {
    "input_lens": [100, 120],
    "output_lens": [3, 2],
    "ttfts": [0.05, 0.06],
    "itls": [[0.01, 0.03], [0.02]],
    "start_times": [7.0, 7.5],
    "errors": ["", ""],
}


def _jsonl(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def _json(tmp_path: Path, **changed: Any) -> Path:  # noqa: ANN401 - JSON
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({name: value for name, value in (BENCH | changed).items() if value is not None}))
    return path


def test_stamps_count_from_the_first_request(tmp_path: Path) -> None:
    """Requests are numbered as they were queued; times are seconds from the first."""
    assert read_run(_jsonl(tmp_path, STAMPED)).rows == (
        RequestTimes(0, 0.0, 20, 1, 0.0, 0.25, 0.25),
        RequestTimes(1, 0.5, 10, 3, 0.6, 1.0, 2.0),
    )


def test_a_served_benchmark_has_gaps_between_tokens(tmp_path: Path) -> None:
    """First tokens by TTFT, the last by the gaps; the gaps themselves make the inter-token latency."""
    run = read_run(_json(tmp_path))
    assert run.rows == (RequestTimes(0, 0.0, 100, 3, 0.0, 0.05, 0.09), RequestTimes(1, 0.5, 120, 2, 0.5, 0.56, 0.58))
    assert run.summary()["itl_s"]["mean"] == pytest.approx(0.02)
    assert run.summary()["itl_s"]["p50"] == pytest.approx(0.02)


def test_a_run_is_a_workload_of_what_was_sent(tmp_path: Path) -> None:
    """Requests arrive when they were sent."""
    for path in (_jsonl(tmp_path, STAMPED), _json(tmp_path)):
        workload, run = read_workload(path), read_run(path)
        sent = [(r.arrival_ns / 1e9, r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]
        assert sent == [(r.arrival_s, r.num_prompt_tokens, r.num_output_tokens) for r in run.rows]


def test_our_own_results_come_back(tmp_path: Path) -> None:
    """What `simulate --csv` writes is read as a run."""
    rows = (RequestTimes(0, 0.0, 5, 2, 0.0, 0.1, 0.2), RequestTimes(1, 0.3, 6, 2, 0.3, 0.5, 0.9))
    path = tmp_path / "own.csv"
    SimulationResult(rows, 4, 0, 0.1).write_csv(path)
    assert read_run(path).rows == rows


def test_runs_compare_statistic_by_statistic(tmp_path: Path) -> None:
    """A simulation that takes twice as long is 100 % off in every statistic, and in each request."""
    real = read_run(_json(tmp_path))
    doubled = tuple(
        RequestTimes(r.request_id, r.arrival_s, r.num_prompt_tokens, r.num_output_tokens, r.arrival_s, *_twice(r))
        for r in real.rows
    )
    found = {row.metric: row for row in compare_runs(SimulationResult(doubled, 1, 0, 0.0), real)}
    assert set(found) == {"ttft", "tpot", "e2e"}
    for row in found.values():
        assert row.errors == pytest.approx((1.0,) * 4)
        assert row.mape == pytest.approx(1.0)
    itself = {row.metric: row for row in compare_runs(real, real)}
    assert itself["itl"].errors == (0.0,) * 4
    assert itself["itl"].mape is None


def test_no_error_is_told_beside_a_real_time_of_nothing() -> None:
    """Tokens that come together: 5 ms where the engine took none is no error of 0 %."""
    rows = (RequestTimes(0, 0.0, 5, 3, 0.0, 0.1, 0.12),)
    gaps = [
        TokenGaps(np.array(times_ns), np.array(counts)) for times_ns, counts in (([5_000_000], [4]), ([0, 20_000_000], [3, 1]))
    ]
    simulated, real = (SimulationResult(rows, 3, 0, 0.1, own) for own in gaps)
    (found,) = (row for row in compare_runs(simulated, real) if row.metric == "itl")
    assert found.errors[0] == pytest.approx(0.0)
    assert found.errors[1] is None
    assert found.to_json()["errors"]["p50"] is None
    assert found.errors[3] is not None


def _twice(row: RequestTimes) -> tuple[float, float]:
    return row.arrival_s + 2 * (row.first_token_s - row.arrival_s), row.arrival_s + 2 * (row.finish_s - row.arrival_s)


def test_runs_of_other_requests_are_refused(tmp_path: Path) -> None:
    """The first request that differs is named, and what to do."""
    with pytest.raises(InvalidInputError, match=r"compare: request 0 differs, of 2 simulated and 2 real .*--workload"):
        compare_runs(read_run(_json(tmp_path)), read_run(_jsonl(tmp_path, STAMPED)))


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"itls": None}, "lacks itls; run `vllm bench serve` with --save-result --save-detailed"),
        ({"errors": ["", "timeout"]}, "1 of 2 requests failed"),
        ({"ttfts": [0.1]}, "holds no run"),
        ({"ttfts": ["soon", 0.1]}, "holds no run"),
        ({"ttfts": [-1, 0.1]}, "must not decrease"),
    ],
)
def test_a_result_that_is_no_run_is_refused(tmp_path: Path, changed: dict[str, Any], rule: str) -> None:
    """One line each, also where the file is given as a workload."""
    path = _json(tmp_path, **changed)
    with pytest.raises(InvalidInputError, match=rule) as caught:
        read_run(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkloadError, match=rule):
        read_workload(path)


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", "{"), ("a.jsonl", '{"input_toks": 1}'), ("a.csv", "a,b\n"), ("a.json", "[]")]
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    """Broken, incomplete and foreign files; and one that is not there."""
    (tmp_path / name).write_text(text)
    for path in (tmp_path / name, tmp_path / "missing.csv"):
        with pytest.raises(InvalidInputError, match=rf"{path.name}"):
            read_run(path)
