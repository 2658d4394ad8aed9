"""How tables are printed, and how progress is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.cli import _output
from dooly.cli._options import writable
from dooly.cli._output import new_table, progress_bar, show, writing

if TYPE_CHECKING:
    from pathlib import Path


def test_a_log_hears_now_and_then_how_far_work_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal, a line says how much is done once the interval is over; short work is silent."""
    heard = []
    for interval_s in (30, 0):
        monkeypatch.setattr(_output, "_LINE_EVERY_S", interval_s)
        with progress_bar("profiling") as update:
            update(1, 4)
            update(2, 4, "smollm2-135m: profiling")
        heard.append(capsys.readouterr().err.splitlines())
    assert heard == [[], ["profiling: 1 of 4", "smollm2-135m: profiling: 2 of 4"]]


def test_rows_in_a_pipe_end_where_their_words_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A long cell makes other rows no longer, and folds where COLUMNS says so, as a terminal's would."""
    monkeypatch.delenv("COLUMNS", raising=False)
    table = new_table("name", "words")
    table.add_row("short", "one")
    table.add_row("long", "two " * 40)
    show(table)
    lines = capsys.readouterr().out.splitlines()
    assert " short   one" in lines
    assert not [line for line in lines if line != line.rstrip()]
    assert max(map(len, lines)) > 160
    monkeypatch.setenv("COLUMNS", "60")
    show(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """Looking whether a file can be made leaves a link to it as it is, and no file."""
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    assert writable(link) == link
    assert link.is_symlink()
    assert not file.exists()


def test_a_reader_that_has_seen_enough_is_no_full_disk(tmp_path: Path) -> None:
    """What ends a pipe ends the command quietly, and blames no file."""
    with pytest.raises(BrokenPipeError), writing(tmp_path / "pipe"):
        raise BrokenPipeError
