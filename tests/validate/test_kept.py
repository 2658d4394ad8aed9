from __future__ import annotations

import lzma
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbstore import Environment
from dooly.engines import ServingConfig
from dooly.errors import InvalidInputError
from dooly.simulate import RequestTimes, SimulationResult
from dooly.validate import KeptRuns, ServedRun, StepRun, read_runs, write_runs
from dooly.validate._kept import _changes, _steps

if TYPE_CHECKING:
    from pathlib import Path

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
    return KeptRuns("m", "poisson:rate=1,requests=2", ServingConfig(max_num_seqs=7), ENVIRONMENT, 99, 0.1, (run, run))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Requests, steps, settings and environment come back equal, to the nanosecond."""
    steps = (StepRun(0.1, 0.05, ((0, 5, 0),)), StepRun(0.2, 0.05, ((0, 1, 5), (1, 7, 0))))
    path = tmp_path / "runs.json.xz"
    write_runs(_kept(steps), path)
    assert read_runs(path) == _kept(steps)
    assert [p.name for p in tmp_path.iterdir()] == ["runs.json.xz"]


works = st.dictionaries(st.integers(0, 4), st.tuples(st.integers(1, 3), st.integers(0, 6)), max_size=5)


@given(st.lists(works, max_size=8))
def test_every_step_comes_back(drawn: list[dict[int, tuple[int, int]]]) -> None:
    """Whatever steps work on, joins and leavings, chunks and preemptions, is read as it was, but for the order of requests."""
    steps = [StepRun(0.5, 0.25, tuple((place, *work) for place, work in each.items())) for each in drawn]
    found = list(_steps(_changes(steps)))
    assert [sorted(step.work) for step in found] == [sorted(step.work) for step in steps]


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
    with pytest.raises(InvalidInputError, match="schema 2 is not 1"):
        read_runs(path)
