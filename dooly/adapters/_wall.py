"""From one step to the next: what a step takes on its device, or what its host takes to launch it where that is longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from dooly.predict import BatchArrays, LatencyModel


def wall_s(latency: LatencyModel, batches: BatchArrays) -> npt.NDArray[np.float64]:
    """Return seconds from each step to the next in an engine that is busy, shape (num_batches,).

    Raises:
        OutOfDomainError: A batch exceeds what was measured.
    """
    step_ns = latency.steps_ns(batches)
    if (host := latency.host) is not None:
        only_decodes = batches.new.max(axis=1) == 1
        launch_ns = [
            host.launch_ns(tokens, only_decodes=decodes)
            for tokens, decodes in zip(batches.num_tokens.tolist(), only_decodes.tolist(), strict=True)
        ]
        # A device waits for what is prepared after the step before it, unless the engine schedules ahead.
        waits_ns = 0 if latency.schedules_ahead else host.prepare_ns
        step_ns = np.maximum(step_ns + waits_ns, np.array(launch_ns))
    return np.asarray(step_ns / 1e9)
