"""Time calls on a CUDA device: events around CUDA-graph replays, or around plain launches where capture fails.

A graph holds all calls of one operation, in the order of the step: the same work in each layer, behind each other as the engine's
own graphs have them, each with the weights, activations, KV cache and attention metadata of the step it was captured in. What the
launch of a graph itself takes between two events is measured apart and taken off, and the rest divided by the calls. So no time
holds a launch, and each call finds the second-level cache as other layers leave it. The stream is held back while the host queues
a whole round.
"""

from __future__ import annotations

import time
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dooly.measure.timers._timer import Call, PreparedCalls, Timing, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dooly.catalog import Key
    from dooly.device import Clocks

_FIRST_HOLD_NS, _LONGEST_HOLD_NS = 200_000, 25_600_000
_WARM_UP_NS = 10_000_000
"""Rounds run untimed for so long: a device that was idle raises its clocks over milliseconds."""
_MORE_KERNELS, _OVERHEAD_ROUNDS = 64, 50


class DeviceStream(Protocol):
    """What the timer asks of a device's current stream."""

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture a call, run it once, and return what replays it.

        Raises:
            RuntimeError: The call does what a capture forbids; the stream is usable as before.
        """
        ...

    def short_work(self, count: int) -> Callable[[], object]:
        """Return a call of so many kernels that do next to nothing, each behind the last."""
        ...

    def mark(self) -> Any:  # noqa: ANN401 - a recorded event
        """Record an event behind all work queued so far."""
        ...

    def has_passed(self, mark: Any) -> bool:  # noqa: ANN401 - a recorded event
        """Tell whether the device has reached an event."""
        ...

    def elapsed_ns(self, begin: Any, end: Any) -> int:  # noqa: ANN401 - recorded events
        """Wait for an event, and return its distance from an earlier one, in nanoseconds."""
        ...

    def hold(self, duration_ns: int) -> None:
        """Keep the stream busy for at least so long."""
        ...

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        ...

    def clocks(self) -> Clocks:
        """Return the device's clocks now."""
        ...


class CudaTimer:
    """Times calls by events on a stream."""

    mark_timing: Timing = "cuda-events"

    def __init__(self, stream: DeviceStream) -> None:
        self._stream = stream
        self._refused: set[Key] = set()
        self.mark, self.elapsed_ns, self.clocks = stream.mark, stream.elapsed_ns, stream.clocks

    def prepare(self, calls: Sequence[Call]) -> PreparedCalls:
        """Capture a graph of the calls of each operation to time, and warm up.

        An operation that once refused capture is launched plainly from then on: a failed capture costs the stream much to undo.
        """
        units = [self._unit(key, places, calls) for key, places in _grouped(calls)]
        prepared = _CudaCalls(self._stream, units, len(calls), self.overhead_ns)
        begin = time.perf_counter_ns()
        while time.perf_counter_ns() - begin < _WARM_UP_NS:
            prepared.time_ns()
        return prepared

    @cached_property
    def overhead_ns(self) -> int:
        """What the launch of a graph takes between two events, beside its kernels, in nanoseconds.

        A graph of one kernel takes this and the kernel; each further kernel in it takes the kernel alone.
        """
        replays = [self._stream.capture(self._stream.short_work(count)) for count in (1, 1 + _MORE_KERNELS)]
        one, many = (median(self._elapsed(replay) for _ in range(_OVERHEAD_ROUNDS)) for replay in replays)
        return max(0, round(one - (many - one) / _MORE_KERNELS))

    def _elapsed(self, run: Callable[[], object]) -> int:
        self._stream.synchronize()
        self._stream.hold(_FIRST_HOLD_NS)
        begin = self._stream.mark()
        run()
        return self._stream.elapsed_ns(begin, self._stream.mark())

    def _unit(self, key: Key | None, places: tuple[int, ...], calls: Sequence[Call]) -> _Unit:
        def run() -> None:
            for place in places:
                calls[place].run()

        replay = None if key is None or key in self._refused else self._captured(key, run)
        return _Unit(places, replay or run, "cuda-graph" if replay else "cuda-events")

    def _captured(self, key: Key, call: Callable[[], object]) -> Callable[[], object] | None:
        try:
            return self._stream.capture(call)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._refused.add(key)
            return None


class _Unit(NamedTuple):
    """Calls that are timed together."""

    places: tuple[int, ...]
    """Their places among the calls."""
    run: Callable[[], object]
    """Runs all of them."""
    timing: Timing
    """How they are timed."""


def _grouped(calls: Sequence[Call]) -> list[tuple[Key | None, tuple[int, ...]]]:
    """Return the calls' places by operation, in the order of their first calls; what runs untimed stays alone, at its place."""
    groups: dict[object, tuple[Key | None, list[int]]] = {}
    for place, call in enumerate(calls):
        groups.setdefault(call.key or place, (call.key, []))[1].append(place)
    return [(key, tuple(places)) for key, places in groups.values()]


class _CudaCalls:
    def __init__(self, stream: DeviceStream, units: Sequence[_Unit], num_calls: int, overhead_ns: int) -> None:
        by_place = {place: unit.timing for unit in units for place in unit.places}
        self.timings = tuple(by_place[place] for place in range(num_calls))
        self.host_ahead = False
        self._stream = stream
        self._units = units
        self._overhead_ns = overhead_ns
        self._hold_ns = _FIRST_HOLD_NS

    def time_ns(self) -> list[int | None]:
        """Time one round, and hold the stream back longer until the host has queued all of it before the device begins.

        Calls that wait for the device never let the host get ahead: past the longest hold, their times are kept as they are.
        """
        times = self._round()
        while not self.host_ahead and self._hold_ns < _LONGEST_HOLD_NS:
            self._hold_ns *= 2
            times = self._round()
        return times

    def _round(self) -> list[int | None]:
        stream = self._stream
        stream.synchronize()
        stream.hold(self._hold_ns)
        held = stream.mark()
        marks = []
        for unit in self._units:
            begin = stream.mark()
            unit.run()
            marks.append((begin, stream.mark()))
        self.host_ahead = not stream.has_passed(held)
        stream.synchronize()
        times: list[int | None] = [None] * len(self.timings)
        for unit, (begin, end) in zip(self._units, marks, strict=True):
            overhead_ns = self._overhead_ns if unit.timing == "cuda-graph" else 0
            times[unit.places[0]] = max(1, round((stream.elapsed_ns(begin, end) - overhead_ns) / len(unit.places)))
        return times
