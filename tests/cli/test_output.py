"""How quantities are written, and how progress is told."""

from __future__ import annotations

import time

import pytest

from dooly.cli._output import human, progress_bar


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7 B"),
        (999.4, "999 B"),
        (999.6, "1 kB"),
        (1234, "1.23 kB"),
        (33_000_000, "33 MB"),
        (999_999, "1 MB"),
        (2.1e9, "2.1 GB"),
        (1.5e15, "1.5 PB"),
        (1.234567e19, "12,346 PB"),
    ],
)
def test_three_digits_and_a_prefix(value: float, text: str) -> None:
    """A quantity has three digits and a decimal prefix; one that rounds up to a thousand takes the next."""
    assert human(value, "B") == text


def test_a_log_hears_now_and_then_how_far_work_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal, a line at most every half minute says what is done; short work is silent."""
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress_bar("profiling") as update:
        for done in range(4):
            update(done, 4)
    assert capsys.readouterr().err.splitlines() == ["profiling: 1 of 4", "profiling: 3 of 4"]
