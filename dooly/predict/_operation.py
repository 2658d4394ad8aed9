"""What an operation's latency is fitted on: base terms and tree features, for batches in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import batch_dims
from dooly.dtypes import item_bytes
from dooly.tracing import evaluate_form, form_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from dooly.predict._features import BatchArrays
    from dooly.tracing import TracedOperation

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

    @cached_property
    def counts(self) -> frozenset[str]:
        """The counts of a batch that its sizes are made of: tokens, requests, both or none."""
        return frozenset(name for dim in self.operation.request_dims for name in form_names(dim))

    @property
    def window(self) -> int | None:
        """Sliding window of attention, in tokens; None for full attention."""
        window = self.operation.attributes.get("sliding_window")
        return int(window) if window is not None and int(window) > 0 else None

    def terms(self, batches: BatchArrays) -> Floats:
        """Return what the latency is a sum of, shape (num_batches, num_terms): a constant, then FLOPs and bytes."""
        if self.is_attention:
            columns = batches.attention(self.window).columns()
            # Of attention over all requests at once no sum over requests tells: its products are a term of their own.
            across = self.cost(batches) if self.operation.attributes.get("spans_batch") else ()
            return np.column_stack([np.ones(len(columns)), columns, *across])
        return self.roofline_terms(self._sizes(batches), len(batches.new))

    def sizes(self, batches: BatchArrays) -> Floats:
        """Return the value of the operation's one request dimension in each batch, shape (num_batches,)."""
        return self.request_features(self._sizes(batches), len(batches.new))[:, 0]

    def payload_bytes(self, batches: BatchArrays) -> Floats:
        """Return the bytes of what a collective hands out on one rank in each batch, shape (num_batches,)."""
        (output,) = self.operation.outputs
        return item_bytes(output.dtype) * prod(dim.value for dim in output.shape if dim.value is not None) * self.sizes(batches)

    def cost(self, batches: BatchArrays) -> tuple[Floats, Floats]:
        """Return FLOPs and least bytes of one run in each batch, shape (num_batches,) each.

        Raises:
            KeyError: A request dimension is none that a batch of an engine has, as in modules traced outside of one.
        """
        _, flops, traffic = self.roofline_terms(self._sizes(batches), len(batches.new)).T
        return flops, traffic

    def roofline_terms(self, sizes: Mapping[str, Floats], num_points: int) -> Floats:
        """Return a constant, FLOPs and bytes at given request dimensions, shape (num_points, 3).

        Args:
            sizes: The request dimensions by name, arrays of shape (num_points,).
            num_points: How many points; an operation may have no request dimension.
        """
        forms = (self.operation.request_flops, self.operation.request_bytes)
        return _columns([1.0, *(evaluate_form(form, sizes) for form in forms)], num_points)

    def features(self, batches: BatchArrays) -> Floats:
        """Return what the trees see, shape (num_batches, num_features)."""
        if self.is_attention:
            work = batches.attention(self.window)
            return np.column_stack([work.columns(), work.longest, *self.cost(batches)])
        return self.request_features(self._sizes(batches), len(batches.new))

    def request_features(self, sizes: Mapping[str, Floats], num_points: int) -> Floats:
        """Return the operation's own request dimensions, shape (num_points, num_dims), at given ones of the model."""
        return _columns([evaluate_form(dim, sizes) for dim in self.operation.request_dims], num_points)

    def _sizes(self, batches: BatchArrays) -> dict[str, Floats]:
        values: dict[str, npt.NDArray[np.generic]] = batch_dims(batches)
        if self.is_attention:
            work = batches.attention(self.window)
            values |= {"query_key_pairs": work.query_key_pairs, "kv_tokens": work.kv_tokens}
        return {name: array.astype(np.float64) for name, array in values.items()}


def _columns(values: Sequence[float | Floats], num_points: int) -> Floats:
    """Return values as columns, shape (num_points, num_values); a number holds at every point."""
    columns = np.empty((num_points, len(values)))
    for place, value in enumerate(values):
        columns[:, place] = value
    return columns
