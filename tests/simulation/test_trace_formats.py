"""Traces that others publish: BurstGPT, Vidur, Splitwise, Azure 2024 and 2025, Mooncake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.errors import WorkloadError
from dooly.simulation import SchedulerConfig, Workload, read_workload
from dooly.simulation._scheduler import Scheduler

if TYPE_CHECKING:
    from pathlib import Path

BURST = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
118,GPT-4,417,0,417,Conversation log
185.5,ChatGPT,1360,276,1636,API log
"""
VIDUR = """arrived_at,num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio
0.0,374,44,418,8.5
0.314579,396,109,505,3.6330275229357798
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
"""
AZURE_2025 = """TIMESTAMP,NumImages,ContextTokens,GeneratedTokens
2025-05-10 00:00:00.5,0,2162,5
2025-05-10 00:00:01.5,{images},2399,6
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1500, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 0, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}
{"timestamp": 3000, "input_length": 1012, "output_length": 12, "hash_ids": [0, 28]}
"""


def _read(tmp_path: Path, text: str, name: str = "t.csv") -> Workload:
    (tmp_path / name).write_text(text)
    return read_workload(tmp_path / name)


def _rows(workload: Workload) -> list[tuple[int, int, int, int]]:
    return [(r.request_id, r.arrival_ns, r.num_prompt_tokens, r.num_output_tokens) for r in workload.requests]


def test_burstgpt_requests_that_failed_are_left_out_and_counted(tmp_path: Path) -> None:
    """A row without response tokens is a failed request."""
    workload = _read(tmp_path, BURST)
    assert _rows(workload) == [(0, 5_000_000_000, 472, 18), (2, 185_500_000_000, 1360, 276)]
    (note,) = workload.notes
    assert "1 failed request without response tokens left out" in note


def test_vidurs_own_traces(tmp_path: Path) -> None:
    """Seconds, prefill and decode tokens."""
    workload = _read(tmp_path, VIDUR)
    assert _rows(workload) == [(0, 0, 374, 44), (1, 314_579_000, 396, 109)]
    assert workload.notes == ()


def test_splitwises_traces(tmp_path: Path) -> None:
    """Seconds, prompt and output tokens; what else the rows hold does not change the cost."""
    text = "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n0,2,0,0.5,1,301,7\n"
    assert _rows(_read(tmp_path, text)) == [(0, 500_000_000, 301, 7)]


def test_blanks_behind_commas_and_utc_times_are_read(tmp_path: Path) -> None:
    """As spreadsheets and loggers write them."""
    text = AZURE_2024.replace(",", ", ").replace(" 00:", "T00:").replace("+00:00", "Z")
    assert "T00:00:00.009930Z, 2162" in text
    assert _rows(_read(tmp_path, text)) == _rows(_read(tmp_path, AZURE_2024))


def test_azures_times_may_carry_a_zone(tmp_path: Path) -> None:
    """Times count from the first row."""
    assert _rows(_read(tmp_path, AZURE_2024)) == [(0, 0, 2162, 5), (1, 7_405_000, 2399, 6)]


def test_a_column_that_changes_the_cost_is_not_dropped(tmp_path: Path) -> None:
    """Images are not priced: a row that has some is refused by name, and rows without any are read."""
    assert len(_read(tmp_path, AZURE_2025.format(images=0)).requests) == 2
    with pytest.raises(WorkloadError, match=r"t\.csv:3: NumImages is '2', which the simulator does not price; take"):
        _read(tmp_path, AZURE_2025.format(images=2))


def test_mooncakes_hash_ids_are_shared_prefixes(tmp_path: Path) -> None:
    """Milliseconds, and an id for each 512 tokens of a prompt: prompts whose ids begin alike begin alike."""
    workload = _read(tmp_path, MOONCAKE, "t.jsonl")
    assert _rows(workload) == [(0, 0, 1500, 500), (1, 0, 7322, 490), (2, 3_000_000_000, 1012, 12)]
    assert [r.prefix_ids for r in workload.requests] == [(0, 1, 2), (0, 14), (0, 28)]
    assert {r.prefix_block_size for r in workload.requests} == {512}
    config = SchedulerConfig(max_model_len=10_000, num_kv_blocks=10_000)
    scheduler = Scheduler(workload.requests, config)
    for position in range(3):
        scheduler.add(position)
    step = scheduler.schedule()
    # The second finds the first's 512 tokens, and its chunk takes the rest of the budget.
    assert step.to_batch().num_computed_tokens == (0, 512)
    assert step.to_batch().num_new_tokens == (1500, 548)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("[0, 14]", "7", r"t\.jsonl:2: hash_ids must be a list of at most one id for each 512 of 7322 tokens, got 7; correct"),
        ("[0, 28]", "[0, 28, 29]", r"t\.jsonl:3: hash_ids must be a list of at most one id for each 512 of 1012 tokens"),
        ("[0, 14]", '[0, "x"]', r"t\.jsonl:2: hash_ids must be a whole number of at least 0, got 'x'"),
        ('"timestamp": 3000', '"timestamp": -3', r"t\.jsonl:3: timestamp must be a number of"),
        ('"output_length": 12', '"tokens": 12', r"t\.jsonl:3: a line must be a JSON object with timestamp, input_length"),
    ],
)
def test_a_bad_line_of_mooncakes_is_named(tmp_path: Path, old: str, new: str, rule: str) -> None:
    """File, line, rule and value."""
    with pytest.raises(WorkloadError, match=rule):
        _read(tmp_path, MOONCAKE.replace(old, new), "t.jsonl")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (BURST.replace("472", "none"), r"t\.csv:2: Request tokens must be a whole number"),
        (BURST.replace("185.5", "later"), r"t\.csv:4: Timestamp must be a number of seconds"),
        (VIDUR.replace("0.314579", "-1"), r"t\.csv:3: arrived_at must be a number of seconds"),
        (VIDUR.replace(",44,", ",,"), r"t\.csv:2: num_decode_tokens must be a whole number"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, text: str, rule: str) -> None:
    """File, line, rule and value."""
    with pytest.raises(WorkloadError, match=rule):
        _read(tmp_path, text)
