"""The CUDA timer's own logic, on a stream that the host plays, with a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dooly.measure._clocks import Clocks, slowdowns
from dooly.measure._cuda_timer import CudaTimer
from dooly.measure._replay import Replay
from dooly.measure._timer import Call

if TYPE_CHECKING:
    from collections.abc import Callable

LAUNCH_NS = 10_000
"""What queueing one call costs the host."""


class QueuedStream:
    """A stream whose calls take as long as they return, once the device reaches them."""

    def __init__(self, fault: Callable[[], None] = lambda: None) -> None:
        self.fault = fault
        self.captures = 0
        self.host_ns = 0
        self.device_ns = 0
        self.holds: list[int] = []

    def _launch(self, duration_ns: int) -> None:
        self.host_ns += LAUNCH_NS
        self.device_ns = max(self.device_ns, self.host_ns) + duration_ns

    def launches(self, duration_ns: int) -> Callable[[], None]:
        """Return a call that keeps the device busy for so long."""
        return lambda: self._launch(duration_ns)

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Return the call, unless the fault that was put in strikes."""
        self.captures += 1
        self.fault()
        return call

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


def test_calls_are_captured_and_replayed() -> None:
    """Calls to time are captured once each; what only keeps the cache is launched plainly, and times are the device's alone."""
    stream = QueuedStream()
    calls = [Call(("a", ()), stream.launches(700)), Call(None, stream.launches(50)), Call(("b", ()), stream.launches(3000))]
    prepared = CudaTimer(stream).prepare(calls)
    assert stream.captures == 2
    assert prepared.timings == ("cuda-graph", "cuda-events", "cuda-graph")
    assert prepared.time_ns() == [700, 50, 3000]
    assert prepared.host_ahead


def test_a_refused_capture_falls_back_to_events_and_is_not_tried_again() -> None:
    """The fault leaves the call timed by events around plain launches, in this and in later batches."""
    stream = QueuedStream(_forbidden)
    timer = CudaTimer(stream)
    for _ in range(2):
        prepared = timer.prepare([Call(("a", ()), stream.launches(700))])
        assert prepared.timings == ("cuda-events",)
        assert prepared.time_ns() == [700]
    assert stream.captures == 1
    stream.fault = lambda: None
    assert timer.prepare([Call(("b", ()), stream.launches(1))]).timings == ("cuda-graph",)


def test_all_calls_of_an_operation_are_timed_in_one_way() -> None:
    """Where the second of three calls refuses capture, the first is launched plainly too, and the third is not tried."""
    stream = QueuedStream()
    stream.fault = lambda: _forbidden() if stream.captures == 2 else None
    key = ("a", ())
    prepared = CudaTimer(stream).prepare([Call(key, stream.launches(ns)) for ns in (700, 800, 900)])
    assert prepared.timings == ("cuda-events",) * 3
    assert prepared.time_ns() == [700, 800, 900]
    assert stream.captures == 2


def test_memory_that_runs_out_in_a_capture_is_not_a_refusal() -> None:
    """The point is infeasible, and the operation's next point is captured again."""
    stream = QueuedStream(_exhausted)
    timer = CudaTimer(stream)
    with pytest.raises(torch.OutOfMemoryError):
        timer.prepare([Call(("a", ()), stream.launches(1))])
    stream.fault = lambda: None
    assert timer.prepare([Call(("a", ()), stream.launches(1))]).timings == ("cuda-graph",)


def test_the_stream_is_held_until_the_host_is_ahead() -> None:
    """Many short calls take longer to queue than the first hold lasts: it grows until no time holds a launch."""
    stream = QueuedStream()
    prepared = CudaTimer(stream).prepare([Call(("a", (str(i),)), stream.launches(500)) for i in range(100)])
    assert prepared.time_ns() == [500] * 100
    assert prepared.host_ahead
    assert stream.holds[0] < stream.holds[-1] == 1_600_000


def test_calls_that_wait_for_the_device_are_told() -> None:
    """A call that synchronises never lets the host get ahead: its times are kept, and said to hold launches."""
    stream = QueuedStream(_forbidden)

    def waits() -> None:
        stream.synchronize()
        stream._launch(500)

    prepared = CudaTimer(stream).prepare([Call(("a", ()), waits)])
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
    """Modules of a step go through capture in the step's order; one that refuses it is told apart in what is recorded."""
    stream = QueuedStream()
    network = _Layers()
    order: list[int] = []

    def third_fails() -> None:
        order.append(len(order))
        if len(order) == 3:
            _forbidden()

    stream.fault = third_fails
    linear, other = ("linear", ("num_tokens",)), ("tanh", ("num_tokens",))
    replay = Replay(CudaTimer(stream), {network.first: linear, network.second: linear, network.other: other}, budget_ns=10**7)
    with replay.attached(network):
        network(torch.ones(2, 4))
    assert order == [0, 1, 2]
    assert replay.attributes[linear]["timing"] == "cuda-graph"
    assert replay.attributes[other]["timing"] == "cuda-events"
    assert len(replay.samples_ns[linear]) == 2 * len(replay.samples_ns[other])


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (0x0, ()),
        (0x1, ()),
        (0x2, ()),
        (0x4, ("power cap",)),
        (0x68, ("hardware slowdown", "software thermal", "hardware thermal")),
    ],
)
def test_slowdowns_are_read_from_the_bits(reasons: int, expected: tuple[str, ...]) -> None:
    """Idling and clocks that the user set are no slowdown; caps and heat are."""
    assert slowdowns(reasons) == expected
