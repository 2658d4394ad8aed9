"""The file of a search's simulations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dooly import find_model
from dooly.errors import InvalidInputError
from dooly.searching import Evaluation, combine, read_load
from dooly.searching._limits import LIMITED
from dooly.searching._state import SearchState, _code_digest

if TYPE_CHECKING:
    from pathlib import Path

LOAD = read_load("poisson:requests=2,prompt=1,output=2")
ONE, OTHER = combine([find_model("smollm2-135m")], ["h200"], {"max_num_seqs": (1, 2)})


def _evaluation(rate: float) -> Evaluation:
    return Evaluation(rate, dict.fromkeys(LIMITED, 0.1) | {"tpot_p99": None}, 1 / 3, 2 / 3, 10, {"measured": 1.0})


@pytest.mark.parametrize("rate", [0.1 + 0.2, math.inf])
def test_what_is_kept_is_found_again(rate: float, tmp_path: Path) -> None:
    """A simulation is found as it was, by its candidate, its rate and its requests; another of these is not."""
    file = tmp_path / "state.jsonl"
    with SearchState(LOAD, file) as state:
        state.add(ONE, rate, _evaluation(rate))
    with SearchState(LOAD, file) as state:
        assert state.find(ONE, rate) == _evaluation(rate)
        assert state.find(OTHER, rate) is None
        assert state.find(ONE, 1.0) is None
    with SearchState(read_load("poisson:requests=3,prompt=1,output=2"), file) as state:
        assert state.find(ONE, rate) is None


def test_a_refusal_is_kept(tmp_path: Path) -> None:
    """Why a candidate cannot be is found as it was, under the same key: it takes as long to find out as a simulation."""
    file = tmp_path / "state.jsonl"
    with SearchState(LOAD, file) as state:
        state.add(ONE, math.inf, "its weights leave no room")
    with SearchState(LOAD, file) as state:
        assert state.find(ONE, math.inf) == "its weights leave no room"
        assert state.find(OTHER, math.inf) is None


def test_a_refusal_ends_with_the_engine_that_it_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever installs what a reason asks for is not told the same again."""
    file = tmp_path / "state.jsonl"
    with SearchState(LOAD, file) as state:
        state.add(ONE, math.inf, "tracing it needs the engine")
    monkeypatch.setattr("dooly.searching._state._engine_versions", lambda _engine: ["0.0"])
    with SearchState(LOAD, file) as state:
        assert state.find(ONE, math.inf) is None


def test_nothing_is_read_where_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file a search digests neither its requests nor code and data, which takes longer than to simulate a few."""

    def read(*_: object) -> str:
        raise AssertionError

    for name in ("_code_digest", "_load_digest", "_digest"):
        monkeypatch.setattr(f"dooly.searching._state.{name}", read)
    with SearchState(LOAD, None) as state:
        assert state.find(ONE, 1.0) is None
        state.add(ONE, 1.0, _evaluation(1.0))


def test_data_of_a_device_that_changed_is_simulated_again(tmp_path: Path) -> None:
    """What a folder of a device's data gave is found as long as its files are the same, though its name stays."""
    folder, file = tmp_path / "device", tmp_path / "state.jsonl"
    folder.mkdir()
    (folder / "hardware.json").write_text("{}")
    (folder / "curves.npz").write_bytes(b"one")
    candidate = replace(ONE, hardware=str(folder))
    with SearchState(LOAD, file) as state:
        state.add(candidate, 1.0, _evaluation(1.0))
    with SearchState(LOAD, file) as state:
        assert state.find(candidate, 1.0) == _evaluation(1.0)
    (folder / "curves.npz").write_bytes(b"two")
    with SearchState(LOAD, file) as state:
        assert state.find(candidate, 1.0) is None


@pytest.mark.parametrize(
    ("place", "counts"),
    [
        ("dooly/speculation.py", True),
        ("dooly/prices/_sheet.py", True),
        ("dooly/engines/_config.py", True),
        ("dooly/data/h200/curves.npz", True),
        ("passes/costs.py", True),
        ("dbstore/_store.py", True),
        ("dooly/report/_page.py", False),
        ("dooly/adapters/_a.py", False),
        ("dooly/cli/_app.py", False),
        ("dooly/predict/__pycache__/_fit.pyc", False),
        ("tests/test_batch.py", False),
    ],
)
def test_code_that_decides_what_a_simulation_comes_to(place: str, counts: bool, tmp_path: Path) -> None:  # noqa: FBT001 - a case
    """A line is looked up by the code that has made it: all but what asks and what shows."""
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text("one")
    before = _code_digest.__wrapped__(tmp_path)
    file.write_text("two")
    assert (_code_digest.__wrapped__(tmp_path) != before) == counts


def test_every_cut_is_survived(tmp_path: Path) -> None:
    """Wherever a file was cut off, its whole lines are read, and what is added then stands on a line of its own."""
    file = tmp_path / "state.jsonl"
    with SearchState(LOAD, file) as state:
        state.add(ONE, 1.0, _evaluation(1.0))
    line = file.read_bytes()
    for length in range(0, len(line), 7):
        file.write_bytes(line + line[:length])
        with SearchState(LOAD, file) as state:
            state.add(OTHER, 2.0, _evaluation(2.0))
        with SearchState(LOAD, file) as state:
            assert state.find(ONE, 1.0) == _evaluation(1.0)
            assert state.find(OTHER, 2.0) == _evaluation(2.0)


@pytest.mark.parametrize(
    "content",
    [
        "notes",
        "notes\n",
        '{"schema": 2}\n',
        "[1]\n",
        '{"schema": 1, "key": "a"}\n',
        '{"schema": 1, "key": "a", "reason": "b", "rate": 1}\n',
    ],
)
def test_another_file_is_left_as_it_is(content: str, tmp_path: Path) -> None:
    """A file that no search has written is refused, and not written to."""
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(InvalidInputError, match=r"notes\.txt: holds lines that no search has written"):
        SearchState(LOAD, file)
    assert file.read_text() == content


def test_a_file_that_cannot_be_is_named(tmp_path: Path) -> None:
    """A folder, and a file in a folder that is none, are refused by name."""
    with pytest.raises(InvalidInputError, match="cannot be read"):
        SearchState(LOAD, tmp_path)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        SearchState(LOAD, tmp_path / "none" / "state.jsonl")
