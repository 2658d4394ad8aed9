"""From one step to the next: what a step takes on its device, or what its host takes to launch it where that is longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict import BatchArrays, LatencyModel

    Ints = npt.NDArray[np.int64]


def wall_s(latency: LatencyModel, batches: BatchArrays) -> npt.NDArray[np.float64]:
    """Return seconds from each step to the next in an engine that is busy, shape (num_batches,).

    Raises:
        OutOfDomainError: A batch exceeds what was measured.
    """
    return np.asarray(busy_ns(latency, latency.steps_ns(batches), launches_ns(latency, batches)) / 1e9)


def launches_ns(latency: LatencyModel, batches: BatchArrays) -> Ints:
    """Return what launching each step takes its host, in nanoseconds, shape (num_batches,); 0 where that is not apart."""
    host = latency.host
    if host is None:
        return np.zeros(len(batches.new), dtype=np.int64)
    only_decodes = batches.new.max(axis=1) == 1
    return np.array(
        [
            host.launch_ns(tokens, only_decodes=decodes)
            for tokens, decodes in zip(batches.num_tokens.tolist(), only_decodes.tolist(), strict=True)
        ],
        dtype=np.int64,
    )


def busy_ns(latency: LatencyModel, device_ns: Ints, launch_ns: Ints) -> Ints:
    """Return nanoseconds from each step to the next, by what it takes on device and host, all of shape (num_batches,)."""
    # A device waits for what is prepared after the step before it, unless the engine schedules ahead.
    waits_ns = 0 if latency.host is None or latency.schedules_ahead else latency.host.prepare_ns
    return np.maximum(device_ns + waits_ns, launch_ns)
