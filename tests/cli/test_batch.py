"""`--batch`."""

from __future__ import annotations

import pytest

from dooly.batch import Batch
from dooly.cli._batch import DEFAULT_BATCH, parse_batch
from dooly.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "batch"),
    [
        (DEFAULT_BATCH, Batch((1,), (1024,))),
        ("decode=2", Batch((1, 1), (1024, 1024))),
        ("decode=2,context=7", Batch((1, 1), (7, 7))),
        ("prefill=512", Batch((512,), (0,))),
        ("prefill=16,requests=2,context=8", Batch((16, 16), (8, 8))),
        ("decode=1, context=0 + prefill=4", Batch((1, 4), (0, 0))),
    ],
)
def test_a_batch_is_written_by_groups(text: str, batch: Batch) -> None:
    """Groups of equal requests make one batch, in the order written."""
    assert parse_batch(text) == batch


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "'' where decode or prefill may stand"),
        ("context=8", "'context=8' where decode or prefill may stand"),
        ("decode=1,requests=2", "'requests=2' where context may stand"),
        ("decode=1,context=2,context=3", "'context=3' where"),
        ("decode=1+", "'' where decode or prefill may stand"),
        ("decode", "decode is '', not a whole number from 1"),
        ("decode=0", "decode is '0', not a whole number from 1"),
        ("decode=1.5", "decode is '1.5', not a whole number from 1"),
        ("decode=100000000", "decode is '100000000', not a whole number from 1 to 9999999"),
        ("prefill=1,context=-1", "context is '-1', not a whole number from 0"),
    ],
)
def test_a_wrong_batch_is_named(text: str, rule: str) -> None:
    """The error names the option, the value and the rule, and shows the form."""
    with pytest.raises(InvalidInputError) as caught:
        parse_batch(text)
    message = str(caught.value)
    assert message.startswith(f"--batch {text!r}: ")
    assert rule in message
    assert "decode=8,context=1024" in message
