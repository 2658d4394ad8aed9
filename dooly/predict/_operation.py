"""What an operation's latency is fitted on: base terms and tree features, for batches in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.trace import TracedOperation

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OperationWork:
    """The work that one operation does in a batch, by its closed forms."""

    operation: TracedOperation
    """The traced operation."""

    @property
    def is_attention(self) -> bool:
        """Whether the work depends on each request's context, beside the counts of tokens and requests."""
        return self.operation.depends_on_context

    @property
    def window(self) -> int | None:
        """Sliding window of attention, in tokens; None for full attention."""
        window = self.operation.attributes.get("sliding_window")
        return int(window) if window is not None and int(window) > 0 else None

    def terms(self, batches: BatchArrays) -> Floats:
        """Return what the latency is a sum of, shape (num_batches, num_terms): a constant, then FLOPs and bytes."""
        if self.is_attention:
            columns = batches.attention(self.window).columns()
            return np.column_stack([np.ones(len(columns)), columns])
        return np.column_stack([np.ones(len(batches.new)), *self.cost(batches)])

    def cost(self, batches: BatchArrays) -> tuple[Floats, Floats]:
        """Return FLOPs and least bytes of one run in each batch, shape (num_batches,) each.

        Raises:
            KeyError: A request dimension is none that a batch of an engine has, as in modules traced outside of one.
        """
        dims = self._dims(batches)
        flops, traffic = self._forms
        return flops(*dims), traffic(*dims)

    def features(self, batches: BatchArrays) -> Floats:
        """Return what the trees see, shape (num_batches, num_features)."""
        if self.is_attention:
            work = batches.attention(self.window)
            return np.column_stack([work.columns(), work.longest, *self.cost(batches)])
        return np.column_stack(self._dims(batches))

    def _dims(self, batches: BatchArrays) -> list[Floats]:
        values: dict[str, npt.NDArray[np.generic]] = {"num_tokens": batches.num_tokens, "num_reqs": batches.num_reqs}
        if self.is_attention:
            work = batches.attention(self.window)
            values |= {"query_key_pairs": work.query_key_pairs, "kv_tokens": work.kv_tokens}
        return [values[name].astype(np.float64) for name in self.operation.request_dims]

    @cached_property
    def _forms(self) -> tuple[Callable[..., Floats], Callable[..., Floats]]:
        """FLOPs and bytes as functions of the request dimensions, in their order."""
        import sympy

        symbols = [sympy.Symbol(name) for name in self.operation.request_dims]
        texts = (self.operation.request_flops, self.operation.request_bytes)
        forms = [sympy.sympify(t, locals={str(s): s for s in symbols}) for t in texts]
        flops, traffic = (sympy.lambdify(symbols, form, "numpy") for form in forms)
        return (
            lambda *dims: np.broadcast_to(flops(*dims), dims[0].shape),
            lambda *dims: np.broadcast_to(traffic(*dims), dims[0].shape),
        )
