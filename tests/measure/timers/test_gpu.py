"""Timing on a real CUDA device: `pytest -m gpu`."""

from __future__ import annotations

from math import ceil
from statistics import median
from typing import TYPE_CHECKING

import pytest
import torch

from dooly.device import Gpu, cache_bytes, visible_gpus
from dooly.measure.timers import Call, is_out_of_memory, timer_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from dooly.measure.timers import Timer

pytestmark = pytest.mark.gpu

KEY = ("operation", ("num_tokens",))


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The first CUDA device."""
    if not torch.cuda.is_available():
        pytest.skip("torch reaches no CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture
def timer(device: torch.device) -> Timer:
    """A new timer."""
    return timer_for(device)


def _median_ns(timer: Timer, *runs: Callable[[], object], rounds: int = 20) -> float:
    prepared = timer.prepare([Call((KEY[0], (str(i),)), run) for i, run in enumerate(runs)])
    return median(ns for _ in range(rounds) for ns in prepared.time_ns() if ns is not None)


def _product(device: torch.device, tokens: int, size: int) -> Callable[[], torch.Tensor]:
    x, weight = (torch.randn(n, size, dtype=torch.bfloat16, device=device) for n in (tokens, size))
    return lambda: torch.nn.functional.linear(x, weight)


def test_a_large_product_takes_a_possible_time(timer: Timer, device: torch.device) -> None:
    """An 8192 product takes between the time at 3 PFLOP/s, beyond any GPU, and at 20 TFLOP/s, below any that serves."""
    flops = 2 * 8192**3
    assert flops / 3e15 < _median_ns(timer, _product(device, 8192, 8192)) * 1e-9 < flops / 2e13


def test_a_graph_and_plain_launches_agree(timer: Timer, device: torch.device) -> None:
    """For one long kernel it makes no difference how it is launched."""
    call = _product(device, 4096, 4096)
    captured = timer.prepare([Call(KEY, call)])
    plain = timer.prepare([Call(None, call)])
    assert (captured.timings, plain.timings) == (("cuda-graph",), ("cuda-events",))
    times = [median(ns for _ in range(30) for ns in p.time_ns() if ns is not None) for p in (captured, plain)]
    assert captured.host_ahead
    assert plain.host_ahead
    assert times[0] == pytest.approx(times[1], rel=0.1)


def test_many_short_calls_do_not_count_the_hosts_launches(timer: Timer, device: torch.device) -> None:
    """A kernel over one value takes a few microseconds, also where the host queues a hundred of them."""
    ones = [torch.ones(1, device=device) for _ in range(100)]
    runs = [lambda x=x: x.mul_(1) for x in ones]
    assert _median_ns(timer, *runs) < 6_000


def test_the_launch_of_a_graph_is_no_part_of_its_time(timer: Timer, device: torch.device) -> None:
    """Calls of an operation take the same each, one or many in a graph: what launching it takes is known and small."""
    assert 0 <= timer.overhead_ns < 20_000
    x = torch.ones(1 << 20, device=device)
    times = []
    for number in (1, 32):
        prepared = timer.prepare([Call(KEY, lambda: x.mul_(1)) for _ in range(number)])
        times.append(median(ns for _ in range(30) for ns in prepared.time_ns() if ns is not None))
    assert abs(times[0] - times[1]) < 2_000


def test_cold_weights_take_longer_than_hot_ones(timer: Timer, device: torch.device) -> None:
    """A product of few rows reads its weight from the second-level cache alone, and from memory when rotated over many."""
    size = 2048
    weight_bytes = 2 * size * size
    assert weight_bytes < cache_bytes("cuda") / 2
    hot = _median_ns(timer, _product(device, 8, size))
    copies = ceil(3 * cache_bytes("cuda") / weight_bytes)
    cold = _median_ns(timer, *(_product(device, 8, size) for _ in range(copies)))
    assert cold > 1.1 * hot


def test_a_call_that_waits_for_the_device_is_timed_by_events(timer: Timer, device: torch.device) -> None:
    """A capture of it fails; afterwards allocation, random numbers and captures work as before."""
    x = torch.ones(1 << 20, device=device)
    prepared = timer.prepare([Call(KEY, lambda: x.sum().item())])
    assert prepared.timings == ("cuda-events",)
    assert (prepared.time_ns()[0] or 0) > 0
    torch.cuda.empty_cache()
    assert float(torch.rand(8, device=device).sum()) > 0
    torch.empty(64 << 20, dtype=torch.uint8, device=device)
    after = timer.prepare([Call(("other", ()), lambda: torch.rand(8, device=device).exponential_())])
    assert after.timings == ("cuda-graph",)
    assert (after.time_ns()[0] or 0) > 0


def test_graphs_follow_graphs_that_are_gone(timer: Timer, device: torch.device) -> None:
    """Calls are captured also where all that was captured before them is forgotten; random numbers are as before."""
    x = torch.ones(1 << 20, device=device)
    for _ in range(3):
        assert timer.prepare([Call(KEY, lambda: x.mul_(1))]).timings == ("cuda-graph",)
    assert float(torch.rand(8, device=device).sum()) > 0


def test_memory_that_runs_out_is_told(timer: Timer, device: torch.device) -> None:
    """A call that asks for more than the device has ends in an error of allocation, and the next call runs."""
    too_much = 2 * torch.cuda.get_device_properties(device).total_memory
    with pytest.raises(RuntimeError) as caught:
        timer.prepare([Call(KEY, lambda: torch.empty(too_much, dtype=torch.uint8, device=device))])
    assert is_out_of_memory(caught.value)
    assert _median_ns(timer, _product(device, 128, 1024)) > 0


def test_events_mark_a_span_of_the_devices_work(timer: Timer, device: torch.device) -> None:
    """Two marks around two products lie about twice as far apart as around one."""
    call = _product(device, 4096, 4096)
    call()
    torch.cuda.synchronize()
    spans = []
    for count in (10, 20):
        begin = timer.mark()
        for _ in range(count):
            call()
        spans.append(timer.elapsed_ns(begin, timer.mark()))
    assert spans[1] == pytest.approx(2 * spans[0], rel=0.3)


def test_nvml_knows_the_device(timer: Timer, device: torch.device) -> None:
    """Clocks, temperature, limits and driver are read from the GPU that torch uses."""
    clocks = timer.clocks()
    assert clocks is not None
    assert 100 < clocks.sm_mhz < 5000
    assert 10 < clocks.temperature_c < 120
    gpu = Gpu.of(device)
    assert "MHz" in gpu.limits
    assert (torch.cuda.get_device_name(device), gpu.driver, gpu.limits) in {(g.name, g.driver, g.limits) for g in visible_gpus()}
