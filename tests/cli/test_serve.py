"""`dooly serve`: what it refuses before it listens. What it answers, `tests/adapters/test_service.py` asks."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "either --db PATH, or --hardware NAME"),
        (("--db", "x", "--hardware", "h200"), "either --db PATH, or --hardware NAME"),
        (("--db", "no-such-store"), "no-such-store"),
        (("--hardware", "h9000"), "h9000"),
        (("--hardware", "h200", "--port", "70000"), "--port"),
        (("--hardware", "h200", "--max-body-bytes", "0"), "--max-body-bytes"),
        (("--hardware", "h200", "--mean-output-tokens", "10"), "give both --mean-prompt-tokens"),
        (("--hardware", "h200", "--mean-output-tokens", "10", "--mean-prompt-tokens", "0"), "give at least 1"),
        (("--hardware", "h200", "--max-num-seqs", "0"), "--max-num-seqs: 0"),
    ],
)
def test_wrong_usage_is_refused(arguments: tuple[str, ...], part: str, dooly: Callable[..., tuple[int, str, str]]) -> None:
    """2, and one line."""
    code, out, err = dooly("serve", "llama-3.1-8b", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err


def test_what_it_needs_is_named(dooly: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the line says what to install."""
    for name in [name for name in sys.modules if name.startswith("dooly.adapters.service")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)  # type: ignore[arg-type]  # which makes importing it fail
    code, _out, err = dooly("serve", "llama-3.1-8b", "--hardware", "h200")
    assert code == 2
    assert "fastapi is not installed" in err
    assert "`pip install 'dooly-llm[serve]'`, in a checkout `pip install '.[serve]'`" in err
