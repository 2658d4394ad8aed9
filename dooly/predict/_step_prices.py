"""What steps cost within a domain: all operations of a step priced together, in whichever way is fastest."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import key_of
from dooly.errors import OutOfDomainError
from dooly.power_cap import PowerCap
from dooly.predict._sources import SOURCES
from dooly.predict._step_latency import StepLatencies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from dooly.predict._domain import Domain
    from dooly.predict._features import BatchArrays
    from dooly.predict._hardware import Hardware
    from dooly.predict._step_parts import StepParts
    from dooly.predict._tables import LatencyTables
    from dooly.prices import PriceSheet
    from dooly.tracing import TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]
    OperationLatencies = Iterator[tuple[TracedOperation, Floats]]


class StepPrices:
    """Prices whole steps of one model, and keeps no account of it."""

    def __init__(
        self, model: str, parts: StepParts, domain: Domain, tables: LatencyTables, limited_by: Hardware | None = None
    ) -> None:
        """Take the model's name, for refusals, what a step is made of, and within what it is priced.

        Args:
            model: Name of the model.
            parts: What a step is made of.
            domain: The limits of steps.
            tables: Those of its operations within these limits.
            limited_by: The device whose power limit slows what runs on without a pause; None where nobody knows.
        """
        self._model = model
        self._parts = parts
        self._domain = domain
        self._limited_by = limited_by
        self._tables = tables

    def within(self, domain: Domain, captured_tokens: tuple[int, ...]) -> StepPrices:
        """Return prices of the same operations within other limits; both share what is tabulated."""
        tables = self._tables.within(domain, captured_tokens)
        return StepPrices(self._model, self._parts, domain, tables, self._limited_by)

    def latencies(self, batches: BatchArrays, *, extrapolate: bool) -> StepLatencies:
        """Return the latencies of steps, operation by operation; beyond the domain only if `extrapolate`.

        Raises:
            OutOfDomainError: A batch exceeds what was measured.
        """
        outside = self._domain.outside(batches)
        if outside.any() and not extrapolate:
            raise OutOfDomainError(self._domain.refusal(batches, self._model))
        parts = self._parts.of(batches, self._tables.price_in(batches))
        found = StepLatencies.of(parts, outside | self._domain.outreach(batches))
        if self.power_cap is None:
            return found
        added_ns = self.power_cap.most_added_ns(1e9 * found.seconds, batches.num_tokens)
        return replace(found, sustained_s=found.seconds + added_ns / 1e9)

    def quote(self, batches: BatchArrays) -> tuple[Ints, Floats]:
        """Return the latencies of steps in nanoseconds, shape (num_batches,), and where they are from.

        The second has shape (num_batches, num_sources + 1): nanoseconds by source, and in the last place all of a step's where it
        is extrapolated.

        Raises:
            OutOfDomainError: A batch exceeds what was measured.
        """
        self._refuse_outside(batches)
        # A step that verifies drafts samples more tokens than it has requests, and a sparse prefill reads less than it follows:
        # neither do sums over requests tell.
        if batches.num_draft_tokens is None and not batches.attended and self.sheet is not None:
            from dooly.prices import price_batches

            return price_batches(self.sheet, batches.new, batches.computed, batches.num_new_requests)
        if (runs := self._parts.runs) is not None:
            sources = self._tables.sums_in(batches, runs)
        else:
            sources = {source: np.zeros(len(batches.new)) for source in SOURCES}
            for part in self._parts.of(batches, self._tables.price_in(batches)):
                sources[part.source] += part.latency_ns
        by_source = [sources[source] for source in SOURCES]
        total_ns: Floats = np.sum(by_source, axis=0)
        extrapolated_ns = np.where(self._domain.outreach(batches), total_ns, 0.0)
        return np.asarray(np.maximum(np.rint(total_ns), 1), dtype=np.int64), np.stack([*by_source, extrapolated_ns], axis=1)

    @cached_property
    def sheet(self) -> PriceSheet | None:
        """What steps are priced by, as arrays for compiled loops; None where layers or steps take time of their own."""
        return None if self._parts.runs is None else self._tables.price_sheet(self._parts.runs)

    @cached_property
    def power_cap(self) -> PowerCap | None:
        """What the device's power limit takes from products; None where that is unknown or steps take time of their own."""
        hardware = self._limited_by
        if hardware is None or not hardware.slowdown_permille or self._parts.runs is None:
            return None
        products_ns = self._tables.products_ns(self._parts.runs, hardware)
        return PowerCap(products_ns, hardware.burst_ns, hardware.slowdown_permille)

    def operations_ns(self, batches: BatchArrays, operations: Sequence[TracedOperation]) -> OperationLatencies:
        """Yield a model's operations but the engine's, and what one run of each takes in each batch, shape (num_batches,).

        Raises:
            OutOfDomainError: A batch exceeds what was measured.
        """
        self._refuse_outside(batches)
        known = {key_of(fitted.operation): fitted for fitted in self._parts.operations}
        price = self._tables.price_in(batches)
        for operation in operations:
            if operation.stage != "engine":
                yield operation, price(known[key_of(operation)])

    def _refuse_outside(self, batches: BatchArrays) -> None:
        if not self._domain.allows(batches):
            raise OutOfDomainError(self._domain.refusal(batches, self._model))
