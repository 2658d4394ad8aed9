"""Records kept as columns are what the records themselves would be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dooly.errors import InvalidInputError
from dooly.simulation import Request, SimulationResult, Workload
from dooly.simulation._columns import Columns, as_columns, column, first_repeated, gathered
from dooly.simulation._results import times_as_columns
from dooly.simulation._workload import PLAIN, SHARING

REQUESTS = tuple(Request(i, 10 * i, 5 + i, 2, prefix_ids=(i, 7) if i % 2 else ()) for i in range(9000))
KEPT = gathered(Request, iter(REQUESTS), PLAIN + SHARING)


def test_records_come_out_as_they_went_in() -> None:
    """Each, those of a slice, the last, all in turn; and two sequences of the same are equal, be one a tuple."""
    assert len(KEPT) == len(REQUESTS)
    assert KEPT[4097] == REQUESTS[4097]
    assert KEPT[-1] == REQUESTS[-1]
    assert KEPT[4090:4100] == REQUESTS[4090:4100]
    assert tuple(KEPT) == REQUESTS
    assert KEPT == REQUESTS
    assert REQUESTS[:-1] != KEPT
    assert KEPT != 7
    assert type(KEPT[3].num_prompt_tokens) is int
    assert repr(KEPT).startswith("<9000 records, the first of them Request(request_id=0")


def test_columns_are_taken_and_replaced() -> None:
    """In another order, with other arrivals; fields without a column are as they are by themselves."""
    plain = as_columns(Request, [Request(i, 0, 5, i + 1) for i in range(4)], PLAIN)
    assert as_columns(Request, plain, PLAIN) is plain
    moved = plain.take(np.array([3, 0])).replaced(arrival_ns=np.array([7, 9]))
    assert tuple(moved) == (Request(3, 7, 5, 4), Request(0, 9, 5, 1))
    assert moved.column("priority").tolist() == [0, 0]
    assert moved.column("prefix_ids").tolist() == [(), ()]
    assert column(tuple(moved), "prefix_ids").tolist() == [(), ()]


def test_nothing_is_gathered_from_nothing() -> None:
    """A file without requests is an empty sequence, which no workload takes."""
    none = gathered(Request, iter(()), PLAIN)
    assert (len(none), tuple(none), repr(none)) == (0, (), "<no records>")
    with pytest.raises(InvalidInputError, match="no request"):
        Workload(none, "empty")


@given(st.lists(st.integers(0, 8), max_size=12))
def test_the_first_number_that_occurs_again_is_found(numbers: list[int]) -> None:
    """As a set of those seen finds it."""
    seen: set[int] = set()
    expected = next((n for n in numbers if n in seen or seen.add(n)), None)
    assert first_repeated(np.array(numbers, np.int64)) == expected


def test_times_that_run_backwards_are_refused_in_columns_too() -> None:
    """By the request's own message."""
    requests = (Request(0, 0, 1, 1), Request(1, 0, 1, 1))
    good = np.array([0.0, 0.0])
    rows = times_as_columns(requests, (good, good, good + 1, good + 2))
    assert isinstance(rows, Columns)
    assert SimulationResult(rows, 1, 0, 0.0).duration_s == 2.0
    with pytest.raises(InvalidInputError, match="request 1: arrival_s, scheduled_s, first_token_s, finish_s must not decrease"):
        times_as_columns(requests, (good, good, good + 1, np.array([2.0, 0.5])))
