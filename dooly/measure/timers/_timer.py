"""What a timer is, and the CPU's: how long calls keep a device busy.

A timer prepares the calls of a step once, in their order, and then times them round by round. It also marks moments inside a real
step, so that whole layers can be timed where they run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dooly.catalog import Key
    from dooly.device import Clocks

Timing = Literal["perf_counter", "cuda-graph", "cuda-events"]
"""How a time was taken, as records say: host clock, events around a CUDA-graph replay, events around plain launches."""


class Call(NamedTuple):
    """A call to run, and what it belongs to."""

    key: Key | None
    """The operation that it runs; None for a call that only keeps the cache as a step keeps it, and need not be timed."""
    run: Callable[[], object]
    """Runs it with the arguments it was captured with."""


class PreparedCalls(Protocol):
    """Calls that are ready to be timed."""

    timings: tuple[Timing, ...]
    """How each call is timed, in their order."""
    host_ahead: bool
    """Whether the last round's times hold no launch time of the host; always so on a CPU, which is the host."""

    def time_ns(self) -> Sequence[int | None]:
        """Run all calls once in their order, and return how long each took, in nanoseconds.

        Where calls of one operation are timed together, the first of them has their mean and the others None.
        """
        ...


class Timer(Protocol):
    """Times calls on one kind of device."""

    mark_timing: Timing
    """How the time between two marks is taken."""

    def prepare(self, calls: Sequence[Call]) -> PreparedCalls:
        """Get calls ready to be timed, warm-up included where the device needs one."""
        ...

    def mark(self) -> Any:  # noqa: ANN401 - a moment, of the timer's own kind
        """Mark this moment in the device's work."""
        ...

    def elapsed_ns(self, begin: Any, end: Any) -> int:  # noqa: ANN401 - marks
        """Return the time between two marks, in nanoseconds; wait until the device has reached them."""
        ...

    def clocks(self) -> Clocks | None:
        """Return the device's clocks now; None where they cannot be read."""
        ...

    @property
    def overhead_ns(self) -> int:
        """What was taken off each time of a captured graph, in nanoseconds."""
        ...


class CpuTimer:
    """Wall clock around each call: CPU operators have finished when they return."""

    mark_timing: Timing = "perf_counter"
    overhead_ns = 0

    def prepare(self, calls: Sequence[Call]) -> PreparedCalls:
        """Return the calls as they are."""
        return _CpuCalls(calls)

    def mark(self) -> int:
        """Return this moment, in nanoseconds."""
        return time.perf_counter_ns()

    def elapsed_ns(self, begin: int, end: int) -> int:
        """Return the nanoseconds between two moments."""
        return end - begin

    def clocks(self) -> None:
        """Return None: a virtual machine does not tell its processor's clock."""


class _CpuCalls:
    host_ahead = True

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = calls
        self.timings: tuple[Timing, ...] = tuple("perf_counter" for _ in calls)

    def time_ns(self) -> list[int]:
        return [_time_ns(call) for call in self._calls]


def _time_ns(call: Call) -> int:
    begin = time.perf_counter_ns()
    result = call.run()
    end = time.perf_counter_ns()
    del result  # freed outside the time
    return end - begin


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: Python's own, CUDA's (out of memory) or torch's CPU allocator's.

    An illegal memory access is none: after it the device answers nothing any more.
    """
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text
