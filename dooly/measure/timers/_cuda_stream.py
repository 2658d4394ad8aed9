"""The current CUDA stream of a device, as the CUDA timer uses it: capture, events, holding back, clocks."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from dooly.device import Clocks, Gpu
from dooly.errors import MeasurementError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

_CYCLES_PER_NS = 2
"""No GPU runs faster than 2 cycles a nanosecond by much; a slower one is held longer."""


class CudaStream:
    """Captures and times on the current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Take a device.

        Raises:
            MeasurementError: torch reaches no such device, or NVML cannot be read.
        """
        import torch

        if not torch.cuda.is_available():
            raise MeasurementError(
                f"device {str(device)!r}: torch {torch.__version__} reaches no CUDA device; install a CUDA build"
            )
        self._device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self._gpu = Gpu.of(self._device)
        self._side = torch.cuda.Stream(self._device)
        self._open_pool()

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture a call on a stream aside, after one run of it there, and return the graph's replay.

        Raises:
            RuntimeError: The call does what a capture forbids.
        """
        import torch

        graph = torch.cuda.CUDAGraph()
        self._side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._side):
            call()  # libraries set up this stream's workspaces here, as they must not while it captures
            torch.cuda.synchronize(self._device)
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                call()
            except BaseException:
                self._abandon(graph)
                raise
            try:
                graph.capture_end()
            except RuntimeError:
                self._leave_capture()
                raise
        torch.cuda.current_stream(self._device).wait_stream(self._side)
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            self._leave_capture()

    def _leave_capture(self) -> None:
        """Undo what a failed capture leaves behind in torch: an allocator and a random generator that still wait for its end.

        torch ends both only after the driver has ended the capture without an error. A capture that succeeds resets the
        generator.
        """
        import torch

        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)  # noqa: SLF001 - has no public name
            torch._C._cuda_releasePool(self._device.index, self._pool)  # noqa: SLF001 - has no public name
        self._open_pool()

    def _open_pool(self) -> None:
        """Take a new pool of memory for graphs, and capture one that stays: torch refuses a pool that no graph uses any more."""
        import torch

        self._pool = torch.cuda.graph_pool_handle()
        ones = torch.ones(1, device=self._device)
        torch.cuda.synchronize(self._device)
        self._kept = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._side):
            self._kept.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            ones.mul_(1)
            self._kept.capture_end()

    def short_work(self, count: int) -> Callable[[], object]:
        """Return a call of so many kernels over one value, each behind the last."""
        import torch

        ones = torch.ones(1, device=self._device)

        def run() -> None:
            for _ in range(count):
                ones.mul_(1)

        return run

    def mark(self) -> torch.cuda.Event:
        """Record an event behind all work queued so far."""
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def has_passed(self, mark: torch.cuda.Event) -> bool:
        """Tell whether the device has reached an event."""
        return bool(mark.query())

    def elapsed_ns(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> int:
        """Wait for an event, and return its distance from an earlier one, in nanoseconds."""
        end.synchronize()
        return round(float(begin.elapsed_time(end)) * 1e6)

    def hold(self, duration_ns: int) -> None:
        """Keep the stream busy for at least so long, with a kernel that counts cycles."""
        import torch

        torch.cuda._sleep(_CYCLES_PER_NS * duration_ns)  # noqa: SLF001 - has no public name

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        import torch

        torch.cuda.synchronize(self._device)

    def clocks(self) -> Clocks:
        """Return the device's clocks now."""
        return self._gpu.clocks()
