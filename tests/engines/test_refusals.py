"""How an engine's refusal reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dooly.engines._refusals import first_line

if TYPE_CHECKING:
    from collections.abc import Callable


def _assert(size: int) -> None:
    if size != 128:
        raise AssertionError


@pytest.mark.parametrize(
    ("refuse", "line"),
    [
        (lambda: _assert(100), "AssertionError: raise AssertionError"),
        (lambda: {}["rope"], "KeyError: 'rope'"),
        (lambda: int("many"), "invalid literal for int() with base 10: 'many'"),
    ],
)
def test_a_refusal_says_what_failed(refuse: Callable[[], object], line: str) -> None:
    """Of an assertion that says nothing, the line that made it; of a bare name, what kind of error it is."""
    with pytest.raises((AssertionError, KeyError, ValueError)) as caught:
        refuse()
    assert first_line(caught.value).startswith(line)
