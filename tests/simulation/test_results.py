"""Statistics, the CSV round trip and the error between two runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.errors import InvalidInputError
from dooly.simulation import MetricError, NoiseReport, Request, RequestTimes, SimulationResult, compare, noise, read_workload

if TYPE_CHECKING:
    from pathlib import Path


def result(*rows: tuple[float, float, float, float], outputs: int = 3) -> SimulationResult:
    """Make a result of (arrival, scheduled, first token, finish) in seconds; request ids count up."""
    made = tuple(
        RequestTimes(i, arrival, 10, outputs, scheduled, first, finish)
        for i, (arrival, scheduled, first, finish) in enumerate(rows)
    )
    return SimulationResult(made, num_steps=5, num_preemptions=0, wall_s=0.5)


def test_summary_of_two_requests() -> None:
    """TTFTs of 1 and 3 s, TPOTs of (5-2)/2 and (10-4)/2 s, E2Es of 4 and 9 s; six tokens in 9 s."""
    summary = result((1, 1, 2, 5), (1, 2, 4, 10)).summary()
    assert summary["ttft_s"] == pytest.approx({"mean": 2, "p50": 2, "p90": 2.8, "p95": 2.9, "p99": 2.98})
    assert summary["tpot_s"] == pytest.approx({"mean": 2.25, "p50": 2.25, "p90": 2.85, "p95": 2.925, "p99": 2.985})
    assert summary["e2e_s"] == pytest.approx({"mean": 6.5, "p50": 6.5, "p90": 8.5, "p95": 8.75, "p99": 8.95})
    assert summary["throughput"] == pytest.approx(
        {"output_tokens_per_s": 6 / 9, "total_tokens_per_s": 26 / 9, "requests_per_s": 2 / 9}
    )
    rest = {key: summary[key] for key in ("schema", "requests", "duration_s", "host_wait_s", "power_limit_s", "wall_s")}
    assert rest == {"schema": 1, "requests": 2, "duration_s": 9, "host_wait_s": 0, "power_limit_s": 0, "wall_s": 0.5}
    times = ["ttft_s", "tpot_s", "itl_s", "e2e_s"]
    assert list(summary) == ["schema", "requests", "duration_s", *times, "throughput", "host_wait_s", "power_limit_s", "wall_s"]


def test_requests_of_one_token_have_no_tpot() -> None:
    """TPOT leaves them out, and is None throughout where there are no others."""
    single = result((0, 0, 1, 1), outputs=1)
    assert single.summary()["tpot_s"] == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    both = SimulationResult((*single.rows, RequestTimes(1, 0, 10, 3, 0, 1, 5)), 1, 0, 0.1)
    assert both.tpot_s().tolist() == [2]
    assert compare(single, single).tpot is None
    assert noise([single, single]) == NoiseReport(ttft=0.0, tpot=None)


def test_csv_is_a_workload_again(tmp_path: Path) -> None:
    """The written columns are the documented ones, and times come back to the nanosecond."""
    path = tmp_path / "run.csv"
    result((0.1, 0.2, 0.3, 0.4), (123456.123456789, 123457, 123458, 123459)).write_csv(path)
    header = "request_id,arrival_s,num_prompt_tokens,num_output_tokens,scheduled_s,first_token_s,finish_s"
    assert path.read_text().splitlines()[:2] == [header, "0,0.1,10,3,0.2,0.3,0.4"]
    assert read_workload(path).requests == (Request(0, 100_000_000, 10, 3), Request(1, 123_456_123_456_789, 10, 3))


def test_compare_by_hand() -> None:
    """TTFTs 1 and 4 simulated as 1.5 and 3: MAPE (0.5 + 0.25) / 2, means 2.5 and 2.25; rows match by id, not by order."""
    real = result((0, 0, 1, 3), (0, 0, 4, 8))
    simulated = result((0, 0, 1.5, 3.5), (0, 0, 3, 5))
    report = compare(real, SimulationResult(simulated.rows[::-1], 5, 0, 0.5))
    assert (report.ttft.mape, report.ttft.mean_error) == pytest.approx((0.375, -0.1))
    assert report.tpot is not None
    assert (report.tpot.mape, report.tpot.mean_error) == pytest.approx((0.25, -1 / 3))


def test_compare_with_itself_is_zero() -> None:
    """A result has no error against itself."""
    real = result((0, 0, 1, 3), (0, 0, 4, 8))
    assert compare(real, real).ttft == MetricError(0.0, 0.0)


def test_compare_refuses_different_requests_and_zero_times() -> None:
    """Other ids, other lengths and a real TTFT of 0 are refused."""
    real = result((0, 0, 1, 3))
    with pytest.raises(InvalidInputError, match="different requests"):
        compare(real, result((0, 0, 1, 3), (0, 0, 1, 3)))
    with pytest.raises(InvalidInputError, match="different requests"):
        compare(real, result((0, 0, 1, 3), outputs=4))
    with pytest.raises(InvalidInputError, match="a real TTFT is 0 s"):
        compare(result((0, 0, 0, 3)), real)


def test_noise_is_the_mean_over_ordered_pairs() -> None:
    """TTFTs of 1 and 2 s differ by 100 % and by 50 %: 75 %; the order of the runs does not matter."""
    runs = [result((0, 0, 1, 3)), result((0, 0, 2, 4))]
    assert noise(runs) == noise(runs[::-1]) == NoiseReport(ttft=0.75, tpot=0.0)
    with pytest.raises(InvalidInputError, match="at least two runs"):
        noise(runs[:1])


def test_impossible_rows_are_refused() -> None:
    """Times that run backwards, requests without tokens, no rows and double ids are refused."""
    with pytest.raises(InvalidInputError, match="must not decrease"):
        RequestTimes(0, 1.0, 1, 1, 0.5, 2.0, 3.0)
    with pytest.raises(InvalidInputError, match="at least 1, got 1 and 0"):
        RequestTimes(0, 0.0, 1, 0, 0.5, 2.0, 3.0)
    with pytest.raises(InvalidInputError, match="got 0 rows"):
        SimulationResult((), 0, 0, 0.0)
    with pytest.raises(InvalidInputError, match="got 2 rows"):
        SimulationResult(result((0, 0, 1, 1)).rows * 2, 0, 0, 0.0)
