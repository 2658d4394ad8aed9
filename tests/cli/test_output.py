"""How quantities are written, and how progress is told."""

from __future__ import annotations

import pytest

from dooly.cli import _output
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
    """Where stderr is no terminal, a line says how much is done once the interval is over; short work is silent."""
    heard = []
    for interval_s in (30, 0):
        monkeypatch.setattr(_output, "_LINE_EVERY_S", interval_s)
        with progress_bar("profiling") as update:
            update(1, 4)
            update(2, 4, "smollm2-135m: profiling")
        heard.append(capsys.readouterr().err.splitlines())
    assert heard == [[], ["profiling: 1 of 4", "smollm2-135m: profiling: 2 of 4"]]
