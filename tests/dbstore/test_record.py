"""Records: checked, immutable, equal by content; summaries computed from raw samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from dbstore import InvalidRecordError, Record, StoreError

Make = Callable[..., Record]


def test_equal_content_is_equal(make_record: Make) -> None:
    """Records of the same content are one, whatever containers they were given in."""
    first = make_record(1, point={"batch": [[1, 2]]}, samples_ns=[3, 4])
    second = make_record(1, point={"batch": ((1, 2),)}, samples_ns=np.array([3, 4], dtype=np.uint16))
    assert first == second
    assert len({first, second}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": "b1"},
        {"point": {"num_tokens": 2}},
        {"samples_ns": [1, 2, 4]},
        {"samples_ns": [1, 2, 3, 3]},
        {"attributes": {"warning": "unsteady"}},
        {"samples_ns": [], "infeasible": "out of memory"},
    ],
)
def test_any_change_changes_the_digest(make_record: Make, changes: dict[str, Any]) -> None:
    """Records that differ anywhere have different digests."""
    base: dict[str, Any] = {"samples_ns": [1, 2, 3]}
    assert make_record(1, **(base | changes)) != make_record(1, **base)


def test_samples_cannot_change(make_record: Make) -> None:
    """Neither the caller's array nor the record's own can alter a record."""
    samples_ns = np.array([5, 6], dtype=np.int64)
    record = make_record(1, samples_ns=samples_ns)
    samples_ns[0] = 7
    assert record.samples_ns.tolist() == [5, 6]
    with pytest.raises(ValueError, match="read-only"):
        record.samples_ns[0] = 7
    with pytest.raises(FrozenInstanceError):
        record.infeasible = "no"  # type: ignore[misc]


def test_the_median(make_record: Make) -> None:
    """The median comes from the samples."""
    record = make_record(1, samples_ns=[4, 1, 3, 2])
    assert record.median_ns == 2.5


def test_infeasible_has_no_latency(make_record: Make) -> None:
    """Asking an infeasible point for its latency is an error that gives the reason."""
    record = make_record(1, samples_ns=[], infeasible="out of memory")
    with pytest.raises(StoreError, match="out of memory"):
        _ = record.median_ns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples_ns": []}, "give either samples or a reason"),
        ({"infeasible": "oom"}, "give either samples or a reason"),
        ({"samples_ns": [], "infeasible": " "}, "needs a reason or None"),
        ({"samples_ns": [1.5]}, "needs integers"),
        ({"samples_ns": [[1]]}, r"shape \(num_samples,\)"),
        ({"samples_ns": [-1]}, "got -1"),
        ({"samples_ns": np.array([2**63], dtype=np.uint64)}, "got 9223372036854775808"),
        ({"signature": "../up"}, "Record.signature"),
        ({"signature": ""}, "Record.signature"),
        ({"attributes": {"wall_s": "long"}}, "wall_s"),
        ({"attributes": {"wall_s": -1}}, "wall_s"),
    ],
)
def test_invalid_record_is_refused(make_record: Make, changes: dict[str, Any], message: str) -> None:
    """What breaks a rule is refused in one line that says which."""
    with pytest.raises(InvalidRecordError, match=message) as caught:
        make_record(1, **changes)
    assert "\n" not in str(caught.value)
