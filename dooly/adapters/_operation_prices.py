"""What a model's operations take, as exporters write it: over sizes, and attention over its points."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dooly.adapters._grid import batches_of, prompts_of
from dooly.adapters._pieces import in_pieces
from dooly.errors import UnsupportedModelError
from dooly.predict import BatchArrays
from dooly.predict._kinds import AttentionShape, Collective, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.adapters._grid import AttentionPoint
    from dooly.predict import LatencyModel
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


def sized_ns(latency: LatencyModel, dim: str, sizes: Ints, context: int) -> list[tuple[TracedOperation, Floats]]:
    """Return the operations that one request dimension sizes, collectives apart, with nanoseconds of one run at each size.

    Args:
        latency: Prices them.
        dim: `num_tokens` or `num_reqs`.
        sizes: Values of it, shape (num_sizes,).
        context: Positions that a request may read.
    """
    batches = prompts_of(sizes, context) if dim == "num_tokens" else BatchArrays.of_counts(sizes, sizes)
    return [
        (operation, found)
        for operation, found in latency.operations_ns(batches)
        if operation.request_dims == (dim,) and not isinstance(kind_of(operation), Collective | AttentionShape)
    ]


def the_attention(latency: LatencyModel, tool: str) -> TracedOperation:
    """Return a model's one attention operation.

    Raises:
        UnsupportedModelError: It has none, or several kinds, for which the tool has no place.
    """
    found = {op.signature: op for op in latency.traced.operations if isinstance(kind_of(op), AttentionShape)}
    if len(found) != 1:
        raise UnsupportedModelError(
            f"--format {tool}: {latency.traced.model} has {len(found)} kinds of attention, and its files hold one; export a "
            "model whose layers attend alike"
        )
    return next(iter(found.values()))


def attention_ns(latency: LatencyModel, attention: TracedOperation, points: Sequence[AttentionPoint]) -> Floats:
    """Return nanoseconds of one run of attention at each point, shape (num_points,)."""
    found = []
    for piece in in_pieces(points, lambda point: (1, 1 + point.num_decodes)):
        priced = latency.operations_ns(batches_of(piece))
        found.append(next(ns for operation, ns in priced if operation.signature == attention.signature))
    return np.concatenate(found)
