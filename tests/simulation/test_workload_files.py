"""Workload files: what is read from each kind, and what each bad row is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from dooly.errors import WorkloadError
from dooly.simulation import Request, read_workload

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens\r
2023-11-16 23:59:59.9799600,4808,10\r
2023-11-17 00:00:00.0319601,3180,8\r
2023-11-17 00:00:01,110,27"""
DOOLY = """request_id,arrival_s,num_prompt_tokens,num_output_tokens,scheduled_s
7,0.5,10,2,0.6
3,0.25,20,4,0.3
"""
JSONL = """{"input_toks": 5, "output_toks": 6, "arrival_time_ns": 100, "other": []}

{"input_toks": 7, "output_toks": 8, "arrival_time_ns": 300}
"""
TRACES = Path(__file__).parents[2].parent / "shared" / "traces"


def write(folder: Path, text: str, name: str = "trace.csv") -> Path:
    """Write a workload file."""
    path = folder / name
    path.write_text(text, newline="")
    return path


def test_azure_times_are_exact_and_start_at_zero(tmp_path: Path) -> None:
    """All seven decimals count, over midnight too; the first row arrives at 0; line ends and a missing last one do not matter."""
    assert read_workload(write(tmp_path, AZURE)).requests == (
        Request(0, 0, 4808, 10),
        Request(1, 52_000_100, 3180, 8),
        Request(2, 1_020_040_000, 110, 27),
    )


def test_own_csv_keeps_ids_and_is_sorted_by_arrival(tmp_path: Path) -> None:
    """Ids stay, rows are sorted, further columns are ignored, times are not shifted."""
    assert read_workload(write(tmp_path, DOOLY)).requests == (Request(3, 250_000_000, 20, 4), Request(7, 500_000_000, 10, 2))


def test_jsonl_of_llmservingsim(tmp_path: Path) -> None:
    """Each object is a request; blank lines and further keys are ignored."""
    assert read_workload(write(tmp_path, JSONL, "w.jsonl")).requests == (Request(0, 100, 5, 6), Request(1, 300, 7, 8))


def test_limit_max_tokens_and_rate_scale(tmp_path: Path) -> None:
    """Long rows are left out before the limit counts; a rate scale of 2 halves the times from the first row kept."""
    path = write(tmp_path, AZURE)
    assert [r.request_id for r in read_workload(path, limit=2).requests] == [0, 1]
    assert [r.request_id for r in read_workload(path, limit=1, max_tokens=3188).requests] == [1]
    kept = read_workload(path, max_tokens=3188, rate_scale=2.0).requests
    assert [(r.request_id, r.arrival_ns) for r in kept] == [(1, 0), (2, 484_019_950)]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (AZURE.replace("3180", "many"), "t.csv", r"t.csv:3: ContextTokens must be a whole number of at least 1, got 'many'"),
        (AZURE.replace("110,27", "110"), "t.csv", r"t.csv:4: GeneratedTokens must be .* got None"),
        (AZURE.replace("2023-11-17 00:00:01", "yesterday"), "t.csv", r"t.csv:4: TIMESTAMP must be YYYY-MM-DD .* got 'yesterday'"),
        (AZURE.replace(".0319601", ".-1"), "t.csv", r"t.csv:3: TIMESTAMP must be"),
        (DOOLY.replace("0.25", "-1"), "t.csv", r"t.csv:3: arrival_s must be a number of seconds, at least 0, got '-1'"),
        (DOOLY.replace("0.25", "nan"), "t.csv", r"t.csv:3: arrival_s must be"),
        (DOOLY.replace("3,0.25", "7,0.25"), "t.csv", r"request_id 7 occurs twice"),
        (JSONL.replace("7", "0"), "t.jsonl", r"t.jsonl:3: input_toks must be a whole number of at least 1, got 0"),
        (JSONL.replace("300", "1.5"), "t.jsonl", r"t.jsonl:3: arrival_time_ns must be a whole number of at least 0, got 1.5"),
        (JSONL.replace("7", "true"), "t.jsonl", r"t.jsonl:3: input_toks must be .* got True"),
        (JSONL + "{", "t.jsonl", r"t.jsonl:4: a line must be one JSON object"),
        (JSONL + "[1]", "t.jsonl", r"t.jsonl:4: a line must be a JSON object with input_toks"),
        ("a,b\n1,2\n", "t.csv", r"t.csv:1: the header must hold TIMESTAMP,.* got 'a,b'"),
        ("", "t.csv", r"t.csv:1: the header must hold"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "t.csv", r"t.csv: no request"),
    ],
)
def test_bad_row_is_named(tmp_path: Path, text: str, name: str, message: str) -> None:
    """The message holds file, line, rule and value."""
    with pytest.raises(WorkloadError, match=message):
        read_workload(write(tmp_path, text, name))


def test_unreadable_files_and_bad_options_are_refused(tmp_path: Path) -> None:
    """A missing file, a binary one and options out of range are workload errors."""
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_workload(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match="cannot be read"):
        read_workload(tmp_path / "binary.csv")
    with pytest.raises(WorkloadError, match="rate_scale must be"):
        read_workload(write(tmp_path, DOOLY), rate_scale=0.0)
    with pytest.raises(WorkloadError, match="limit must be at least 1"):
        read_workload(write(tmp_path, DOOLY), limit=0)


@pytest.mark.skipif(not TRACES.is_dir(), reason="needs the Azure 2023 traces in ../shared/traces")
@pytest.mark.parametrize(("name", "num_rows"), [("azure_2023_code.csv", 8819), ("azure_2023_conv.csv", 19366)])
def test_azure_traces_are_read_whole(name: str, num_rows: int) -> None:
    """Every row of the published traces is read, over about an hour."""
    served = read_workload(TRACES / name)
    assert len(served.requests) == num_rows
    assert 3000e9 < served.requests[-1].arrival_ns < 3700e9
