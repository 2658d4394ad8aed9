"""Time calls on a CUDA device: events around CUDA-graph replays, or around plain launches where capture fails.

A graph holds one module call: its weights, activations, KV cache and attention metadata are those of the step it was captured in,
and stay so from replay to replay. Replayed in the order of the step, over all its layers, each call finds the second-level cache
as a step leaves it. The stream is held back while the host queues a whole round, so that no time holds a launch of the host.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from dooly.measure._timer import Call, PreparedCalls, Timing, is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dooly.measure._clocks import Clocks
    from dooly.measure._plan import Key

_FIRST_HOLD_NS, _LONGEST_HOLD_NS = 200_000, 25_600_000
_WARM_UP_NS = 10_000_000
"""Rounds run untimed for so long: a device that was idle raises its clocks over milliseconds."""


class DeviceStream(Protocol):
    """What the timer asks of a device's current stream."""

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture a call, run it once, and return what replays it.

        Raises:
            RuntimeError: The call does what a capture forbids; the stream is usable as before.
        """
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
        """Capture a graph of each call to time, and warm up.

        An operation that once refused capture is launched plainly from then on, in all its calls: a failed capture costs the
        stream much to undo.
        """
        replays = [
            None if call.key is None or call.key in self._refused else self._captured(call.key, call.run) for call in calls
        ]
        # A later call of an operation may be the first that refuses: all of its samples are taken in one way.
        graphs = [None if call.key in self._refused else replay for call, replay in zip(calls, replays, strict=True)]
        runs = [replay or call.run for call, replay in zip(calls, graphs, strict=True)]
        timings: list[Timing] = ["cuda-graph" if replay else "cuda-events" for replay in graphs]
        prepared = _CudaCalls(self._stream, runs, tuple(timings))
        begin = time.perf_counter_ns()
        while time.perf_counter_ns() - begin < _WARM_UP_NS:
            prepared.time_ns()
        return prepared

    def _captured(self, key: Key, call: Callable[[], object]) -> Callable[[], object] | None:
        try:
            return self._stream.capture(call)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._refused.add(key)
            return None


class _CudaCalls:
    def __init__(self, stream: DeviceStream, runs: Sequence[Callable[[], object]], timings: tuple[Timing, ...]) -> None:
        self.timings = timings
        self.host_ahead = False
        self._stream = stream
        self._runs = runs
        self._hold_ns = _FIRST_HOLD_NS

    def time_ns(self) -> list[int]:
        """Time one round, and hold the stream back longer until the host has queued all of it before the device begins.

        Calls that wait for the device never let the host get ahead: past the longest hold, their times are kept as they are.
        """
        times = self._round()
        while not self.host_ahead and self._hold_ns < _LONGEST_HOLD_NS:
            self._hold_ns *= 2
            times = self._round()
        return times

    def _round(self) -> list[int]:
        stream = self._stream
        stream.synchronize()
        stream.hold(self._hold_ns)
        held = stream.mark()
        marks = []
        for run in self._runs:
            begin = stream.mark()
            run()
            marks.append((begin, stream.mark()))
        self.host_ahead = not stream.has_passed(held)
        stream.synchronize()
        return [stream.elapsed_ns(begin, end) for begin, end in marks]
