"""The latency of engine steps: what each operation takes, added up over a model's operations, with where each answer is from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import CUDA_GRAPHS, LAYER, STEP
from dooly.errors import OutOfDomainError, UnsupportedModelError
from dooly.latency import HostTimes
from dooly.predict._features import BatchArrays
from dooly.predict._fitted import FittedOperation, generic_path, operation_name, step_features, step_terms
from dooly.predict._memory import cache_room_bytes, token_bytes
from dooly.predict._sources import SOURCES

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dbstore import Environment
    from dooly.batch import Batch
    from dooly.engines import ServingConfig
    from dooly.predict._domain import Domain
    from dooly.predict._fitted import FittedLayer
    from dooly.predict._hardware import Hardware
    from dooly.predict._regressor import Regressor
    from dooly.predict._sources import Source
    from dooly.tracing import TracedModel

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class StepLatency:
    """The predicted latency of one engine step."""

    seconds: float
    """Latency of the step, in seconds."""
    uncertainty_s: float
    """Typical error in seconds: the operations' median errors on held-out points, taken as independent between operations."""
    breakdown_s: Mapping[str, float]
    """Seconds of each operation over all its runs, by module path; `layer` is what layers take beyond their operations, which may
    be negative, and `step` what the engine does around the model; `module` is what a plain module takes beyond its operations."""
    extrapolated: bool
    """Whether the batch lies outside what was measured: beyond the limits of steps, where that was asked for, or with more for
    attention to read than it was measured to."""
    provenance: Mapping[Source, float]
    """Share of the seconds that is from records of the very operations (`measured`), from others of their families (`family`),
    or from bytes over a measured bandwidth (`estimated`); the shares add up to 1."""


class LatencyModel:
    """Predicts how long an engine's steps take for one model in one environment.

    Meets `dooly.latency.LatencyBackend`, so that any simulator can price its batches with it.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made by `load_latency_model` only
        self,
        traced: TracedModel,
        environment: Environment,
        outside: tuple[FittedOperation, ...],
        layers: tuple[FittedLayer, ...],
        step: Regressor | None,
        domain: Domain,
        hardware: Hardware | None = None,
        host: HostTimes | None = None,
        *,
        schedules_ahead: bool = False,
    ) -> None:
        self.traced = traced
        self.environment = environment
        self.domain = domain
        self.hardware = hardware
        """The device whose shipped measurements these are; None where they are a store's."""
        self.host = host or HostTimes()
        """What the engine's host takes to launch a step of CUDA graphs; zeros where nobody measured it or records hold it."""
        self.schedules_ahead = schedules_ahead
        """Whether the engine schedules a step while another runs, as it does on a GPU by itself."""
        self.priced_ns: dict[Source, float] = dict.fromkeys(SOURCES, 0.0)
        """Nanoseconds of all steps priced so far, by where they are from."""
        self.extrapolated_ns = 0.0
        """Those of steps in which attention reads more than it was measured to."""
        self._outside = outside
        self._layers = layers
        self._step = step
        self._tables: dict[tuple[str, tuple[str, ...]], Floats] = {}

    @cached_property
    def _computed_tokens(self) -> Ints:
        """Tokens that a step computes, by tokens scheduled: graphs are captured at some sizes, and smaller steps padded to them.

        Sizes as vLLM has them by default: 1, 2, 4, multiples of 8 below 256, of 16 from there on.
        """
        sizes = np.arange(self.domain.num_tokens + 1)
        if self.environment.execution_mode != CUDA_GRAPHS:
            return sizes
        largest = min(self.host.max_captured_tokens, self.domain.num_tokens)
        captured = np.array([0, 1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)])
        captured = captured[captured <= largest]
        is_captured = sizes <= captured[-1]
        sizes[is_captured] = captured[np.searchsorted(captured, sizes[is_captured])]
        return sizes

    @property
    def block_size(self) -> int:
        """Tokens in one block of the engine's KV cache: vLLM's own on CUDA, where nobody recorded it."""
        return self.environment.block_size or _BLOCK_SIZE

    def num_kv_blocks(self, serving: ServingConfig) -> int:
        """Return how many KV blocks the engine has, the null block included.

        They are what `num_gpu_blocks_override` says, or as many as `kv_cache_memory_bytes` holds; for a device whose measurements
        ship with Dooly, without either, as many as its memory has room for beside weights and activations.

        Raises:
            UnsupportedModelError: The model attends over sliding windows.
        """
        if serving.num_gpu_blocks_override is not None:
            return serving.num_gpu_blocks_override
        windows = [op.module for op in self.traced.operations if op.attributes.get("sliding_window") not in {None, -1}]
        if windows:
            raise UnsupportedModelError(
                f"{self.traced.model}: {windows[0]} attends over a sliding window, whose KV cache groups the scheduler does "
                "not model yet; simulate a model with full attention"
            )
        block_bytes = self.block_size * token_bytes(self.traced, serving.dtype)
        if self.hardware is not None and serving.kv_cache_memory_bytes is None:
            return cache_room_bytes(self.traced, serving, self.hardware) // block_bytes
        return serving.kv_cache_bytes // block_bytes

    def step(self, batch: Batch, *, extrapolate: bool = False) -> StepLatency:
        """Predict one step, operation by operation.

        Args:
            batch: The scheduled batch.
            extrapolate: Predict beyond the measured tokens, requests or context as well, and flag it, instead of refusing.

        Raises:
            OutOfDomainError: The batch exceeds what was measured.
        """
        arrays = BatchArrays.of([batch])
        allowed = self.domain.allows(arrays)
        if not allowed and not extrapolate:
            raise OutOfDomainError(self.domain.refusal(arrays, self.traced.model))
        price = self._priced_ns if allowed else FittedOperation.latency_ns
        parts: dict[str, float] = {}
        sources: dict[Source, float] = dict.fromkeys(SOURCES, 0.0)
        variance = 0.0

        def add(name: str, source: Source, nanoseconds: float) -> None:
            parts[name] = parts.get(name, 0.0) + nanoseconds
            sources[source] += nanoseconds

        for fitted in self._outside:
            nanoseconds = price(fitted, arrays)[0]
            add(operation_name(fitted.operation), fitted.latency.source, nanoseconds)
            variance += (fitted.latency.relative_error * nanoseconds) ** 2
        for layer in self._layers:
            inner, count = 0.0, layer.operation.count
            for fitted in layer.members:
                nanoseconds = price(fitted, arrays)[0]
                inner += nanoseconds
                add(generic_path(operation_name(fitted.operation)), fitted.latency.source, count * nanoseconds)
                if layer.regressor is None:
                    variance += (fitted.latency.relative_error * count * nanoseconds) ** 2
            if layer.regressor is not None:
                whole = layer.whole_ns(np.array([inner]), arrays)[0]
                add(LAYER, "measured", count * (whole - inner))
                variance += (layer.regressor.relative_error * count * whole) ** 2
        if self._step is not None:
            own_ns = self._step.predict_ns(step_terms(arrays), step_features(arrays))[0]
            add(STEP, "measured", own_ns)
            variance += (self._step.relative_error * own_ns) ** 2
        total_ns = sum(parts.values())
        seconds = {name: ns / 1e9 for name, ns in parts.items()}
        shares = {source: ns / total_ns for source, ns in sources.items()}
        extrapolated = not allowed or bool(self.domain.outreach(arrays)[0])
        return StepLatency(total_ns / 1e9, variance**0.5 / 1e9, seconds, extrapolated, shares)

    def step_ns(self, batch: Batch) -> int:
        """Return the latency of one step, in nanoseconds.

        Raises:
            OutOfDomainError: The batch exceeds what was measured.
        """
        return int(self.steps_ns(BatchArrays.of([batch]))[0])

    def decode_run_ns(self, num_computed_tokens: Ints, num_steps: int) -> Ints:
        """Return the latencies of consecutive decode steps over the same requests, in nanoseconds, shape (num_steps,).

        Args:
            num_computed_tokens: Context lengths at the first step, shape (num_reqs,).
            num_steps: How many steps.

        Raises:
            OutOfDomainError: A step exceeds what was measured.
        """
        return self.steps_ns(BatchArrays.decode_run(np.asarray(num_computed_tokens, dtype=np.int64), num_steps))

    def steps_ns(self, batches: BatchArrays) -> Ints:
        """Return the latencies of many steps, in nanoseconds, shape (num_batches,).

        Raises:
            OutOfDomainError: A step exceeds what was measured.
        """
        if not self.domain.allows(batches):
            raise OutOfDomainError(self.domain.refusal(batches, self.traced.model))
        sources = {source: np.zeros(len(batches.new)) for source in SOURCES}
        if self._step is not None:
            sources["measured"] += self._step.predict_ns(step_terms(batches), step_features(batches))
        for fitted in self._outside:
            sources[fitted.latency.source] += self._by_table(fitted, batches)
        attention: dict[str, Floats] = {}
        for layer in self._layers:
            inner = np.zeros(len(batches.new))
            for fitted in layer.members:
                signature = fitted.operation.signature
                if not fitted.work.is_attention:
                    nanoseconds = self._by_table(fitted, batches)
                else:
                    if signature not in attention:
                        attention[signature] = fitted.latency_ns(batches)
                    nanoseconds = attention[signature]
                inner += nanoseconds
                sources[fitted.latency.source] += layer.operation.count * nanoseconds
            sources["measured"] += layer.operation.count * (layer.whole_ns(inner, batches) - inner)
        for source, nanoseconds in sources.items():
            self.priced_ns[source] += float(nanoseconds.sum())
        total_ns: Floats = np.sum(list(sources.values()), axis=0)
        self.extrapolated_ns += float(total_ns[self.domain.outreach(batches)].sum())
        return np.asarray(np.maximum(np.rint(total_ns), 1), dtype=np.int64)

    @property
    def provenance(self) -> Mapping[Source, float]:
        """Share of all seconds priced so far by where they are from, as `StepLatency` has it."""
        total_ns = max(sum(self.priced_ns.values()), 1.0)
        return {source: nanoseconds / total_ns for source, nanoseconds in self.priced_ns.items()}

    @property
    def extrapolated_share(self) -> float:
        """Share of all seconds priced so far that is of steps in which attention reads more than it was measured to."""
        return self.extrapolated_ns / max(sum(self.priced_ns.values()), 1.0)

    def _priced_ns(self, fitted: FittedOperation, batches: BatchArrays) -> Floats:
        return fitted.latency_ns(batches) if fitted.work.is_attention else self._by_table(fitted, batches)

    def _by_table(self, fitted: FittedOperation, batches: BatchArrays) -> Floats:
        """Predict an operation of counts: where one count decides, from a table over all its values, made at the first use."""
        num_tokens, num_reqs = self._computed_tokens[batches.num_tokens], batches.num_reqs
        if len(fitted.work.counts) > 1:
            return fitted.latency_ns(BatchArrays.of_counts(num_tokens, num_reqs))
        key = (fitted.operation.signature, fitted.operation.request_dims)
        table = self._tables.get(key)
        per_token = "num_tokens" in fitted.work.counts
        if table is None:
            sizes = np.arange(1, (self.domain.num_tokens if per_token else self.domain.num_reqs) + 1)
            table = self._tables[key] = fitted.latency_ns(
                BatchArrays.of_counts(sizes, np.ones_like(sizes) if per_token else sizes)
            )
        return np.asarray(table[(num_tokens if per_token else num_reqs) - 1])
