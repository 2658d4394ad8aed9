"""The CUDA timer's own logic, on a stream that the host plays, with a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dooly.device import Clocks
from dooly.measure.engine._replay import Replay
from dooly.measure.timers import Call
from dooly.measure.timers._cuda_timer import CudaTimer

if TYPE_CHECKING:
    from collections.abc import Callable

LAUNCH_NS = 10_000
"""What queueing one call costs the host."""


GRAPH_NS = 4_000
"""What the launch of a graph costs the device."""


class QueuedStream:
    """A stream whose calls take as long as they return, once the device reaches them."""

    def __init__(self) -> None:
        self.fault: Callable[[], None] = lambda: None
        self.captures = 0
        self.host_ns = 0
        self.device_ns = 0
        self.holds: list[int] = []
        self._captured: list[int] | None = None

    def _launch(self, duration_ns: int) -> None:
        if self._captured is not None:
            self._captured.append(duration_ns)
            return
        self.host_ns += LAUNCH_NS
        self.device_ns = max(self.device_ns, self.host_ns) + duration_ns

    def launches(self, duration_ns: int) -> Callable[[], None]:
        """Return a call that keeps the device busy for so long."""
        return lambda: self._launch(duration_ns)

    def short_work(self, count: int) -> Callable[[], None]:
        """Return a call of so many launches of 300 ns."""
        return lambda: [self._launch(300) for _ in range(count)] and None

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return one launch of all that the call launches, unless the fault that was put in strikes."""
        self.captures += 1
        self.fault()
        self._captured = []
        call()
        work, self._captured = self._captured, None
        return self.launches(GRAPH_NS + sum(work))

    def mark(self) -> int:
        """Return when the device will have done what is queued."""
        return max(self.device_ns, self.host_ns)

    def has_passed(self, mark: int) -> bool:
        """Tell whether the host's clock is past the mark."""
        return self.host_ns >= mark

    def elapsed_ns(self, begin: int, end: int) -> int:
        """Return the time between two marks."""
        return end - begin

    def hold(self, duration_ns: int) -> None:
        """Keep the device busy."""
        self.holds.append(duration_ns)
        self._launch(duration_ns)

    def synchronize(self) -> None:
        """Let the host wait for the device."""
        self.host_ns = self.device_ns = self.mark()

    def clocks(self) -> Clocks:
        """Return clocks as NVML would."""
        return Clocks(1980, 3201, 40, ())


def _forbidden() -> None:
    # What torch raises from a call that synchronises within a capture.
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def _exhausted() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def _timer(stream: QueuedStream, fault: Callable[[], None] = lambda: None) -> CudaTimer:
    """Return a timer that knows its overhead, on a stream whose captures count from now and meet a fault."""
    timer = CudaTimer(stream)
    assert timer.overhead_ns == GRAPH_NS
    stream.captures, stream.fault = 0, fault
    return timer


def test_calls_are_captured_and_replayed() -> None:
    """Operations to time are captured once each; what only keeps the cache is launched plainly, and times are the device's alone.

    What launching a graph takes of the device is no part of them.
    """
    stream = QueuedStream()
    calls = [Call(("a", ()), stream.launches(700)), Call(None, stream.launches(50)), Call(("b", ()), stream.launches(3000))]
    prepared = _timer(stream).prepare(calls)
    assert stream.captures == 2
    assert prepared.timings == ("cuda-graph", "cuda-events", "cuda-graph")
    assert prepared.time_ns() == [700, 50, 3000]
    assert prepared.host_ahead


def test_calls_of_one_operation_are_timed_together() -> None:
    """One graph holds them all: the first has their mean, the others nothing of their own."""
    stream = QueuedStream()
    durations = {"a": (700, 800, 900), "b": (100,)}
    calls = [Call((name, ()), stream.launches(ns)) for name, times in durations.items() for ns in times]
    prepared = _timer(stream).prepare([calls[0], calls[3], calls[1], calls[2]])
    assert stream.captures == 2
    assert prepared.time_ns() == [800, 100, None, None]
    assert prepared.timings == ("cuda-graph",) * 4


def test_a_refused_capture_falls_back_to_events_and_is_not_tried_again() -> None:
    """The fault leaves the calls timed by events around plain launches, in this and in later batches."""
    stream = QueuedStream()
    timer = _timer(stream, _forbidden)
    for _ in range(2):
        prepared = timer.prepare([Call(("a", ()), stream.launches(ns)) for ns in (700, 900)])
        assert prepared.timings == ("cuda-events",) * 2
        assert prepared.time_ns() == [800, None]
    assert stream.captures == 1
    stream.fault = lambda: None
    assert timer.prepare([Call(("b", ()), stream.launches(1))]).timings == ("cuda-graph",)


def test_memory_that_runs_out_in_a_capture_is_not_a_refusal() -> None:
    """The point is infeasible, and the operation's next point is captured again."""
    stream = QueuedStream()
    timer = _timer(stream, _exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        timer.prepare([Call(("a", ()), stream.launches(1))])
    stream.fault = lambda: None
    assert timer.prepare([Call(("a", ()), stream.launches(1))]).timings == ("cuda-graph",)


def test_the_stream_is_held_until_the_host_is_ahead() -> None:
    """Many short calls take longer to queue than the first hold lasts: it grows until no time holds a launch."""
    stream = QueuedStream()
    prepared = _timer(stream).prepare([Call(("a", (str(i),)), stream.launches(500)) for i in range(100)])
    assert prepared.time_ns() == [500] * 100
    assert prepared.host_ahead
    assert stream.holds[0] < stream.holds[-1] == 1_600_000


def test_calls_that_wait_for_the_device_are_told() -> None:
    """A call that synchronises never lets the host get ahead: its times are kept, and said to hold launches."""
    stream = QueuedStream()
    timer = _timer(stream, _forbidden)

    def waits() -> None:
        stream.synchronize()
        stream._launch(500)

    prepared = timer.prepare([Call(("a", ()), waits)])
    holds = len(stream.holds)
    (elapsed,) = prepared.time_ns()
    assert elapsed > 500
    assert not prepared.host_ahead
    assert len(stream.holds) == holds + 1


class _Layers(nn.Module):
    """Two modules of one operation, and one that cannot be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Tanh()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run all three."""
        return self.other(self.second(self.first(x)))  # type: ignore[no-any-return]


def test_a_replay_says_how_each_operation_was_timed() -> None:
    """Operations of a step go through capture in the step's order; one that refuses it is told apart in what is recorded."""
    stream = QueuedStream()
    network = _Layers()
    order: list[int] = []

    def second_fails() -> None:
        order.append(len(order))
        if len(order) == 2:
            _forbidden()

    timer = _timer(stream, second_fails)
    linear, other = ("linear", ("num_tokens",)), ("tanh", ("num_tokens",))
    replay = Replay(timer, {network.first: linear, network.second: linear, network.other: other}, budget_ns=10**7)
    with replay.attached(network):
        network(torch.ones(2, 4))
    assert order == [0, 1]
    assert replay.attributes[linear] | {"host_ahead": True} == {
        "timing": "cuda-graph",
        "host_ahead": True,
        "overhead_ns": GRAPH_NS,
    }
    assert replay.attributes[other]["timing"] == "cuda-events"
    assert len(replay.samples_ns[linear]) == len(replay.samples_ns[other])
