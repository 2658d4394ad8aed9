"""The latency of a plain module's forward: its operations added up, and what it takes beyond them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import MODULE, check_sizes
from dooly.errors import OutOfDomainError
from dooly.predict._sources import ESTIMATE_ERROR
from dooly.predict._step_latency import StepLatencies, StepLatency
from dooly.predict._step_parts import StepPart
from dooly.tracing import generic_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from dbstore import Environment
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import Source
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModuleMember:
    """An operation of a plain module with its regressor."""

    operation: TracedOperation
    """The traced operation."""
    work: OperationWork
    """Its closed forms."""
    regressor: Regressor
    """Its fitted latency."""


@dataclass(frozen=True)
class ModuleLatency:
    """Predicts how long the forward of one plain module takes in one environment; call it with its request dimensions."""

    traced: TracedModel
    """The module's operations, its whole forward as the last."""
    environment: Environment
    """Where they were measured."""
    members: tuple[ModuleMember, ...]
    """The operations, each with its regressor."""
    whole: Regressor
    """Latency of the whole forward, on the sum of the operations."""
    measured: npt.NDArray[np.int64]
    """Sizes at which the whole forward was measured, shape (num_points, num_request_dims)."""

    @property
    def request_dims(self) -> tuple[str, ...]:
        """Names of the module's request dimensions."""
        return self.traced.operations[-1].request_dims

    def __call__(self, *, extrapolate: bool = False, **sizes: int) -> StepLatency:
        """Predict one forward, operation by operation.

        Args:
            extrapolate: Predict outside what was measured as well, and flag it, instead of refusing: estimated, with the error
                that estimates are taken to have.
            sizes: Each request dimension by its name; `**{"x.size(0)": 4}` for one without a name of its own.

        Raises:
            InvalidInputError: A request dimension is missing or unknown, or its size is no integer of at least 1.
            OutOfDomainError: The sizes are beyond what was measured.
        """
        check_sizes(self.traced, sizes)
        outside = not self._covers(sizes)
        if outside and not extrapolate:
            raise OutOfDomainError(self._beyond(sizes))
        return StepLatencies.of(self._parts(sizes, "estimated" if outside else "measured"), np.array([outside]))[0]

    def _parts(self, sizes: Mapping[str, int], source: Source) -> Iterator[StepPart]:
        """Yield the operations of one forward and what it takes beyond them, each with an error of its own, as in layers."""
        arrays = {name: np.array([size], dtype=np.float64) for name, size in sizes.items()}
        inner_ns = np.zeros(1)
        for fitted in self.members:
            latency_ns = member_ns(fitted, arrays, 1)
            inner_ns += latency_ns
            path = generic_path(fitted.operation.module) or self.traced.model
            yield StepPart(path, source, latency_ns, fitted.regressor.relative_error * latency_ns)
        features = np.array([[sizes[name] for name in self.request_dims]], dtype=np.float64)
        whole_ns = self.whole.predict_ns(whole_terms(inner_ns), features)
        error = max(self.whole.relative_error, ESTIMATE_ERROR if source == "estimated" else 0.0)
        yield StepPart(MODULE, source, whole_ns - inner_ns, error * whole_ns)

    def _covers(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether sizes lie between two measured combinations, in every dimension."""
        asked = np.array([sizes[name] for name in self.request_dims])
        return bool((self.measured >= asked).all(axis=1).any() and (self.measured <= asked).all(axis=1).any())

    def _beyond(self, sizes: Mapping[str, int]) -> str:
        asked = ", ".join(f"{name}={sizes[name]}" for name in self.request_dims)
        ranges = zip(self.request_dims, self.measured.min(axis=0), self.measured.max(axis=0), strict=True)
        known = ", ".join(f"{name} from {low} to {high}" for name, low, high in ranges)
        return (
            f"{self.traced.model}: {asked} is outside of what was measured ({known}); call dooly.profile_module with these sizes "
            "in request_dims, or ask for extrapolate=True"
        )


def member_ns(fitted: ModuleMember, sizes: Mapping[str, Floats], num_points: int) -> Floats:
    """Return what an operation takes over all its runs in one forward, in nanoseconds, shape (num_points,)."""
    work = fitted.work
    latency_ns = fitted.regressor.predict_ns(work.roofline_terms(sizes, num_points), work.request_features(sizes, num_points))
    return fitted.operation.count * latency_ns


def whole_terms(inner_ns: Floats) -> Floats:
    """Return the base terms of a whole forward: its operations' sum, and a constant."""
    return np.column_stack([inner_ns, np.ones(len(inner_ns))])
