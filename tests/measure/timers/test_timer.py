from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from dooly.errors import MeasurementError
from dooly.measure.timers import Call, is_out_of_memory, timer_for
from dooly.measure.timers._timer import CpuTimer


def test_the_timer_follows_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module on the CPU gets the host's clock; one on a GPU gets the CUDA timer, which asks torch for the device."""
    assert isinstance(timer_for(next(nn.Linear(2, 2).parameters()).device), CpuTimer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MeasurementError, match=r"device 'cuda:1': torch .* reaches no CUDA device") as caught:
        timer_for(torch.device("cuda", 1))
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_refused_in_one_line() -> None:
    """The error names the device and what can be timed."""
    with pytest.raises(MeasurementError, match="device 'meta': only 'cpu' and 'cuda' can be timed") as caught:
        timer_for(torch.device("meta"))
    assert "\n" not in str(caught.value)


def test_the_cpu_timer_times_each_call_of_a_round() -> None:
    """Calls run once a round in their order, and take at least as long as they sleep."""
    calls: list[float] = []

    def call(seconds: float) -> None:
        calls.append(seconds)
        time.sleep(seconds)

    prepared = CpuTimer().prepare([Call(("a", ()), lambda: call(0.02)), Call(None, lambda: call(0.01))])
    assert calls == []
    long, short = prepared.time_ns()
    assert (long >= 20_000_000, short >= 10_000_000) == (True, True)
    assert calls == [0.02, 0.01]
    assert (prepared.timings, prepared.host_ahead) == (("perf_counter",) * 2, True)


def test_cpu_marks_are_moments() -> None:
    """The time between two marks is what passed between them."""
    timer = CpuTimer()
    begin = timer.mark()
    time.sleep(0.01)
    assert timer.elapsed_ns(begin, timer.mark()) >= 10_000_000
    assert timer.clocks() is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes."),
            True,
        ),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_running_out_of_memory_is_told_apart(error: BaseException, expected: bool) -> None:  # noqa: FBT001 - the expected answer
    """Only errors of allocation make a point infeasible; a broken device or a bug ends the run."""
    assert is_out_of_memory(error) is expected
