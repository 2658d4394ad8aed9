"""Tasks run pass by pass: what cannot run is recorded, and the sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dbstore import JsonObject, Record
from dooly.errors import MeasurementError
from dooly.measure._tasks import InfeasibleBatchError, infeasible_record, record_of, run_tasks

KEY = ("a" * 32, "b" * 32)


@dataclass(frozen=True)
class _Task:
    """A task at one size."""

    number: int
    size: int

    @property
    def missing(self) -> tuple[int, ...]:
        """The size that it measures."""
        return (self.size,)


class _Measurer:
    """Measures sizes below 8, and meets an error at the others."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.compacted = False

    def measure(self, task: _Task) -> tuple[Record, ...]:
        """Take a nanosecond a size."""
        if task.size >= 8:
            raise self.error
        return (record_of(KEY, JsonObject({"d0": task.size}), [task.size], {"others_cores": 0.0}),)

    def give_up(self, task: _Task, reason: str) -> tuple[Record, ...]:
        """Keep the reason."""
        return (infeasible_record(KEY, JsonObject({"d0": task.size}), task.number, reason),)

    def compact(self) -> None:
        """Note that it was called."""
        self.compacted = True


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            InfeasibleBatchError("batch of 8 requests: needs 9 KV blocks, the engine has 4"),
            "batch of 8 requests: needs 9 KV blocks",
        ),
        (MemoryError("std::bad_alloc"), "out of memory: std::bad_alloc"),
    ],
)
def test_what_cannot_run_is_recorded_and_the_sweep_goes_on(error: Exception, reason: str) -> None:
    """A batch beyond the engine's cache, like one beyond its memory, costs its own points only."""
    measurer = _Measurer(error)
    records, _seconds = run_tasks(measurer, [_Task(0, size) for size in (1, 8, 2, 9)], None, lambda *_: None)
    found = {record.point["d0"]: record.infeasible for record in records}
    assert set(found) == {1, 2, 8, 9}
    assert (found[1], found[2]) == (None, None)
    assert all(str(found[size]).startswith(reason) for size in (8, 9))
    assert measurer.compacted


def test_other_errors_end_the_sweep() -> None:
    """A measurement that fails for no want of room is not taken for an infeasible one."""
    with pytest.raises(MeasurementError, match="broken"):
        run_tasks(_Measurer(MeasurementError("broken")), [_Task(0, 8)], None, lambda *_: None)
