"""How progress is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dooly.cli import _output
from dooly.cli._output import progress_bar

if TYPE_CHECKING:
    import pytest


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
