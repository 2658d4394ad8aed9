"""Tasks run pass by pass: what cannot run is recorded, and the sweep goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from dbstore import Environment, JsonObject, Record, Store
from dooly.catalog import PASSES, medians, record_counts
from dooly.errors import MeasurementError
from dooly.measure._tasks import InfeasibleBatchError, infeasible_record, record_of, run_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """A measurement that fails for no want of room is not taken for an infeasible one; what was written before is folded."""
    measurer = _Measurer(MeasurementError("broken"))
    with pytest.raises(MeasurementError, match="broken"):
        run_tasks(measurer, [_Task(0, 8)], None, lambda *_: None)
    assert measurer.compacted


class _DisturbedMeasurer(_Measurer):
    """Is disturbed at the moments given, counted from 0, and cannot run the task of one."""

    def __init__(self, moments: set[int], refused: int | None = None) -> None:
        super().__init__(MeasurementError("none"))
        self.moments, self.refused = moments, refused
        self.sizes: list[int] = []
        self.written: list[Record] = []

    def measure(self, task: _Task) -> tuple[Record, ...]:
        """Take twice as long where something disturbs."""
        disturbed, refused = len(self.sizes) in self.moments, len(self.sizes) == self.refused
        self.sizes.append(task.size)
        if refused:
            raise InfeasibleBatchError("too large")
        facts = {"others_cores": 0.0, "drift": 1.0 if disturbed else 0.0, "order": len(self.sizes)}
        self.written.append(record_of(KEY, JsonObject({"d0": task.size}), [task.size * (1 + disturbed)] * 3, facts))
        return (self.written[-1],)


def test_what_was_disturbed_is_told_and_measured_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is told when it begins and ends, is measured once more after the rest, and does not count beside what was not."""
    measurer = _DisturbedMeasurer({2, 3})
    done: list[tuple[int, int]] = []
    records, _ = run_tasks(measurer, [_Task(0, size) for size in range(1, 9)], None, lambda *at: done.append(at))
    assert measurer.sizes[8:] == measurer.sizes[2:4]
    assert sorted(measurer.sizes[:8]) == list(range(1, 9))
    assert [record.attributes["spoiled"] for record in measurer.written] == [False, False, True, True] + [False] * 6
    assert len(records) == 8
    assert not any(record.attributes["spoiled"] for record in records)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert "takes 100 % longer than at best" in told[0]
    assert told[1] == "the device is undisturbed again"
    assert done[-1] == (8, 8)
    points, latency_ns = medians(measurer.written)
    assert {point["d0"]: ns for point, ns in zip(points, latency_ns, strict=True)} == {size: size for size in range(1, 9)}


def test_what_cannot_be_run_ends_no_disturbance(caplog: pytest.LogCaptureFixture) -> None:
    """Between two disturbed tasks one that is infeasible says nothing of the device."""
    run_tasks(_DisturbedMeasurer({2, 4}, refused=3), [_Task(0, size) for size in range(1, 9)], None, lambda *_: None)
    assert len(caplog.records) == 2


def test_a_device_that_stays_disturbed_costs_a_quarter_more(caplog: pytest.LogCaptureFixture) -> None:
    """Not everything is measured twice, and nothing three times; what has no other measurement counts."""
    measurer = _DisturbedMeasurer(set(range(100)))
    records, _ = run_tasks(measurer, [_Task(0, size) for size in range(1, 33)], None, lambda *_: None)
    assert (len(records), len(measurer.written)) == (32, 40)
    assert max(measurer.sizes.count(size) for size in range(1, 33)) == 2
    assert len(medians(measurer.written)[0]) == 32
    assert len(caplog.records) == 1


class _Heard:
    """Proposes tasks in order, and keeps what it is told."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.tasks = [_Task(0, size) for size in sizes]
        self.delayed_sizes: list[int] = []
        self.told_values: list[tuple[int, float]] = []

    def next(self) -> _Task | None:
        """Return the next task."""
        return self.tasks.pop(0) if self.tasks else None

    def told(self, task: _Task, records: Sequence[Record], /) -> None:
        """Keep what it took."""
        self.told_values += [(task.size, record.median_ns) for record in records]

    def delayed(self, task: _Task, /) -> None:
        """Keep its size."""
        self.delayed_sizes.append(task.size)

    def given_up(self, task: _Task, /) -> _Task:
        """Return it: no other measures the same."""
        return task

    def num_left(self) -> int:
        """Return how many tasks are left."""
        return len(self.tasks)


def test_a_plan_hears_of_the_measurement_that_stands() -> None:
    """It is told of a disturbed task only what the undisturbed repeat found, and after the others."""
    plan = _Heard((3, 4, 5, 6))
    run_tasks(_DisturbedMeasurer({1}), plan, None, lambda *_: None)
    assert plan.delayed_sizes == [4]
    assert plan.told_values == [(3, 3), (5, 5), (6, 6), (4, 4)]


def test_a_plan_hears_of_disturbed_measurements_where_there_is_no_other() -> None:
    """On a device that stays disturbed each task is told once, repeated or not."""
    plan = _Heard(tuple(range(1, 9)))
    run_tasks(_DisturbedMeasurer(set(range(100))), plan, None, lambda *_: None)
    assert plan.told_values == [(size, 2 * size) for size in range(1, 9)]


def test_a_repeat_that_finds_no_room_leaves_the_first_record() -> None:
    """What ran out of memory only when it was measured again is feasible, and nothing else is written."""

    class Shrinking(_DisturbedMeasurer):
        """Has no room for what it measures a second time."""

        def measure(self, task: _Task) -> tuple[Record, ...]:
            """Fail at the second time."""
            if task.size in self.sizes:
                raise MemoryError("std::bad_alloc")
            return super().measure(task)

        def give_up(self, task: _Task, reason: str) -> tuple[Record, ...]:
            """Refuse."""
            raise AssertionError(task, reason)

    records, _ = run_tasks(Shrinking({0}), [_Task(0, 3)], None, lambda *_: None)
    assert [(record.infeasible, record.median_ns) for record in records] == [(None, 6)]


def test_disturbed_records_do_not_count_until_there_are_twice_as_many_as_passes() -> None:
    """A point of three disturbed records has none that counts; six attempts are enough, whatever came of them."""
    store = Store.open("memory://disturbed", "a")
    calm, disturbed = {"others_cores": 0.0, "drift": 0.0}, {"others_cores": 0.0, "drift": 1.0}
    facts = {1: [disturbed] * PASSES, 2: [disturbed, calm], 3: [disturbed] * 2 * PASSES, 4: [calm] * PASSES}
    texts = ("device", "driver", "torch_version", "engine", "engine_version", "attention_backend", "dtype", "kv_cache_dtype")
    others = {"device_kind": "cpu", "execution_mode": "eager", "quantization": None, "block_size": 16, "num_threads": 2}
    environment = Environment.from_json(dict.fromkeys(texts, "any") | others)
    store.write_document("environments", environment.digest, environment.to_json())
    key = ("c" * 32, environment.digest)
    for size, found in facts.items():
        for number, each in enumerate(found):
            store.write(record_of(key, JsonObject({"d0": size}), [size + number], {**each, "pass": number, "order": number}))
    counts = record_counts(store, *key)
    assert {point["d0"]: count for point, count in counts.items()} == {2: 1, 3: PASSES, 4: PASSES}
    assert record_counts(store, "d" * 32, key[1]) == {}
