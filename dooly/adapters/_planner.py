"""Planner arrays for Dynamo's mocker (ai-dynamo/dynamo, Apache-2.0): one NPZ file of times in milliseconds.

`prefill_isl` and `prefill_ttft_ms`: tokens of the prompts in a step, and what it takes. `decode_active_kv_tokens`,
`decode_context_length` and `decode_itl`: positions that all decodes of a step read, positions that each reads, and what the step
takes; their quotient is the number of decodes. The mocker interpolates linearly, takes the sum for a step of both kinds,
and 1 ms for a decode at least.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from dooly.adapters._grid import Limits, grown, prompts_of, sizes_up_to
from dooly.adapters._result import ExportResult, limit_notes, write_file
from dooly.adapters._wall import wall_s
from dooly.predict import BatchArrays

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from dooly.engines import ModelSource, ServingConfig
    from dooly.predict import LatencyModel

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

TOOL = "planner"
_LEAST_CONTEXT = 16
_CONTEXTS, _KV = 1.06, 1.02
"""Between contexts, and between positions read in all: the number of decodes, at which graphs change, is their quotient."""
_NOTES = (
    "the mocker adds a step's prompts and decodes up; a real step of both computes its products once",
    "prompts are priced without a context before them; more tokens than a context are several prompts",
)


def export_planner(latency: LatencyModel, model: ModelSource, serving: ServingConfig, path: Path) -> ExportResult:  # noqa: ARG001 - as all exporters
    """Write planner arrays.

    Args:
        latency: The latency model.
        model: The model, which these arrays do not name.
        serving: The settings that the latency model was made with; their limits are those of the arrays.
        path: The file.

    Raises:
        InvalidInputError: The file cannot be written.
    """
    limits = Limits.of(latency, serving)
    isl = sizes_up_to(limits.num_tokens, serving.cudagraph_capture_sizes)
    prompts = wall_s(latency, prompts_of(isl, limits.context))
    contexts = np.array(grown(_LEAST_CONTEXT, limits.context, _CONTEXTS))
    by_context = np.stack([_decode_s(latency, int(context), limits.num_reqs) for context in contexts], axis=1)
    counts = np.arange(1, limits.num_reqs + 1)
    active = np.array(grown(_LEAST_CONTEXT, limits.context * limits.num_reqs, _KV))
    itl = np.stack(
        [np.interp(active / context, counts, seconds) for context, seconds in zip(contexts, by_context.T, strict=True)], axis=1
    )
    arrays = {
        "prefill_isl": isl.astype(np.float64),
        "prefill_ttft_ms": 1e3 * prompts,
        "decode_active_kv_tokens": active.astype(np.float64),
        "decode_context_length": contexts.astype(np.float64),
        "decode_itl": 1e3 * itl,
    }
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # names of arrays, none of them an option
    write_file(path, content.getvalue())
    return ExportResult((path,), sum(array.size for array in arrays.values()), (*_NOTES, *limit_notes(latency)))


def _decode_s(latency: LatencyModel, context: int, num_reqs: int) -> Floats:
    """Return what steps of 1, 2, ... decodes take that each read so many positions, shape (num_reqs,)."""
    counts: Ints = np.arange(1, num_reqs + 1)
    new = (counts[:, None] > np.arange(num_reqs)).astype(np.int64)
    return wall_s(latency, BatchArrays(new, (context - 1) * new, np.zeros_like(counts)))
