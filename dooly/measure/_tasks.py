"""Run measuring tasks pass by pass, and keep what they find as records: what engines and plain modules have in common."""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from itertools import chain
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from dbstore import Record
from dooly.errors import MeasurementError
from dooly.measure.timers import disturbances, is_out_of_memory, is_spoiled

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import JsonObject

_UNSTEADY = 0.25
_MOST_AGAIN, _LEAST_AGAIN = 0.25, 4
_LOGGER = logging.getLogger("dooly.measure")


class InfeasibleBatchError(MeasurementError):
    """The engine cannot run a batch with the memory or the limits that it has."""


class Planned(Protocol):
    """What running tasks in passes needs to know of one."""

    @property
    def number(self) -> int:
        """The pass that it belongs to, from 0."""
        ...

    @property
    def missing(self) -> Sequence[object]:
        """What it measures, a record an entry."""
        ...


AnyTask = TypeVar("AnyTask", bound=Planned)
_Task_contra = TypeVar("_Task_contra", bound=Planned, contravariant=True)


class Measurer(Protocol[_Task_contra]):
    """Measures tasks and writes their records."""

    def measure(self, task: _Task_contra, /) -> Sequence[Record]:
        """Measure one task, write its records, and return them."""
        ...

    def give_up(self, task: _Task_contra, /, reason: str) -> Sequence[Record]:
        """Record a task as infeasible, and return the records."""
        ...

    def compact(self) -> None:
        """Fold what was written, once all tasks are done."""
        ...


def record_of(key: tuple[str, str], point: JsonObject, values: list[int], facts: dict[str, Any]) -> Record:
    """Return the record of what was measured at a point, with how steady it was.

    Args:
        key: The operation's signature and the environment's digest.
        point: The operation's request dimensions.
        values: Samples, in nanoseconds.
        facts: Attributes of the record; what `Watch.facts` says is among them, and on a GPU `throttling`.
    """
    spread = float(np.subtract(*np.percentile(values, [75, 25])) / max(1.0, median(values)))
    spoiled = is_spoiled(facts)
    judged = {"spread": spread, "spoiled": spoiled, "unsteady": spoiled or spread > _UNSTEADY}
    return Record(*key, point, np.asarray(values, dtype=np.int64), {**facts, **judged})


def infeasible_record(key: tuple[str, str], point: JsonObject, number: int, reason: str) -> Record:
    """Return the record of a point that could not be measured in pass `number`."""
    return Record(*key, point, np.empty(0, dtype=np.int64), {"pass": number}, infeasible=reason)


class Plan(Protocol[AnyTask]):
    """Proposes tasks one after another, and is told what came of each."""

    def next(self) -> AnyTask | None:
        """Return the next task, or None at the end."""
        ...

    def told(self, task: AnyTask, records: Sequence[Record], /) -> None:
        """Take in the records of a task."""
        ...

    def delayed(self, task: AnyTask, /) -> None:
        """Take in that a task was disturbed: what comes of it is told when it was measured again, once `next` has no other."""
        ...

    def given_up(self, task: AnyTask, /) -> AnyTask:
        """Take in that a task cannot be run, and return it with that alone which can be measured nowhere else."""
        ...

    def num_left(self) -> int:
        """Return how many records are still wanted, as far as that is known."""
        ...


class FixedPlan(Generic[AnyTask]):
    """Tasks that are all known from the start, in an order in which drift does not become shape."""

    def __init__(self, tasks: Sequence[AnyTask]) -> None:
        """Take the tasks, of all passes."""
        self._tasks = shuffled(tasks)[::-1]

    def next(self) -> AnyTask | None:
        """Return the next task, or None at the end."""
        return self._tasks.pop() if self._tasks else None

    def told(self, task: AnyTask, records: Sequence[Record], /) -> None:
        """Let records change nothing."""

    def delayed(self, task: AnyTask, /) -> None:
        """Let a disturbance change nothing."""

    def given_up(self, task: AnyTask, /) -> AnyTask:
        """Return the task: a point's first batch, which it is planned at, is the least of those that have it."""
        return task

    def num_left(self) -> int:
        """Return how many records the tasks left are of."""
        return sum(len(task.missing) for task in self._tasks)


def run_tasks(
    measurer: Measurer[AnyTask],
    tasks: Sequence[AnyTask] | Plan[AnyTask],
    budget_s: float | None,
    progress: Callable[[int, int], None],
) -> tuple[tuple[Record, ...], float]:
    """Run tasks, and return the records that stand and the seconds spent.

    Where a task runs out of memory, or the engine cannot run its batch, what no other task has is recorded as infeasible. What
    something disturbed is told at once, in a warning of the logger `dooly.measure`, and measured once more when the plan has
    nothing else for now; no more than a quarter of the tasks are, but four at least. The plan hears of that measurement alone; of
    the disturbed one only where it stands: where there is no other, or none that was possible. The disturbed record stays in the
    store, marked. However the run ends, what it wrote is folded.

    Args:
        measurer: What measures a task.
        tasks: The tasks of all passes, or what proposes them.
        budget_s: Seconds to measure at most; None measures everything.
        progress: Called with (points done, points planned) after each task.
    """
    plan = FixedPlan(tasks) if isinstance(tasks, Sequence) else tasks
    found: list[Sequence[Record]] = []
    waiting: deque[tuple[int, AnyTask]] = deque()
    num_again = 0
    begin = time.perf_counter()
    disturbances = _Disturbances()
    try:
        while budget_s is None or time.perf_counter() - begin <= budget_s:
            if (task := plan.next()) is not None:
                found.append(_measured(measurer, plan, task))
                if disturbances.found_in(found[-1]):
                    waiting.append((len(found) - 1, task))
                    plan.delayed(task)
                else:
                    plan.told(task, found[-1])
            elif waiting:
                place, task = waiting.popleft()
                if num_again < max(_LEAST_AGAIN, ceil(_MOST_AGAIN * len(found))):
                    num_again += 1
                    found[place] = _measured_again(measurer, task, found[place])
                    disturbances.found_in(found[place])
                plan.told(task, found[place])
            else:
                break
            done = sum(map(len, found))
            progress(done, done + plan.num_left())
    finally:
        measurer.compact()
    return tuple(chain.from_iterable(found)), time.perf_counter() - begin


def _measured(measurer: Measurer[AnyTask], plan: Plan[AnyTask], task: AnyTask) -> Sequence[Record]:
    """Measure a task, or record why it cannot be."""
    try:
        return measurer.measure(task)
    except InfeasibleBatchError as error:
        return measurer.give_up(plan.given_up(task), str(error))
    except (MemoryError, RuntimeError) as error:  # torch reports it as the latter
        if not is_out_of_memory(error):
            raise
        return measurer.give_up(plan.given_up(task), f"out of memory: {str(error).partition(chr(10))[0]}")


def _measured_again(measurer: Measurer[AnyTask], task: AnyTask, first: Sequence[Record]) -> Sequence[Record]:
    """Measure a task once more; where that is impossible now, the first records stand, since it was possible then."""
    try:
        return measurer.measure(task)
    except InfeasibleBatchError:
        return first
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return first


class _Disturbances:
    """Tells of disturbances when they begin and when they end."""

    def __init__(self) -> None:
        self._disturbed = False

    def found_in(self, records: Sequence[Record]) -> bool:
        """Tell whether records are spoiled; what could not be run tells nothing."""
        if all(record.infeasible is not None for record in records):
            return False
        spoiled = next((record.attributes for record in records if record.attributes.get("spoiled")), None)
        if spoiled is not None and not self._disturbed:
            _LOGGER.warning(
                "the device is disturbed: %s; what is measured now is marked, and measured again later",
                " and ".join(disturbances(spoiled)),
            )
        elif spoiled is None and self._disturbed:
            _LOGGER.warning("the device is undisturbed again")
        self._disturbed = spoiled is not None
        return self._disturbed


def shuffled(tasks: Sequence[AnyTask]) -> list[AnyTask]:
    """Return the tasks pass by pass, in an order within each in which slow drift of the machine does not become shape."""
    rng = random.Random(0)  # noqa: S311 - an order of work
    return sorted(tasks, key=lambda task: (task.number, rng.random()))
