"""The latency of engine steps, from the records of a store: one regressor an operation, added up over a model's operations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dooly.errors import OutOfDomainError, UnsupportedModelError
from dooly.predict._features import BatchArrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    from dbstore import Environment
    from dooly.batch import Batch
    from dooly.engines import ServingConfig
    from dooly.predict._operation import OperationWork
    from dooly.predict._regressor import Regressor
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


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
    """Whether the batch lies outside what was measured."""


@dataclass(frozen=True, slots=True)
class FittedOperation:
    """An operation with its regressor."""

    operation: TracedOperation
    """The traced operation."""
    work: OperationWork
    """Its closed forms."""
    regressor: Regressor
    """Its fitted latency."""


@dataclass(frozen=True, slots=True)
class FittedLayer:
    """A kind of layer: its operations, and the regressor of the whole."""

    operation: TracedOperation
    """The whole layer."""
    members: tuple[FittedOperation, ...]
    """The operations that it runs, one entry a run."""
    regressor: Regressor
    """Latency of the layer, on the sum of its operations."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The largest request dimensions that were measured."""

    num_tokens: int
    """Tokens in a step."""
    num_reqs: int
    """Requests in a step."""
    context: int
    """Positions that one request reads."""


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
        step: Regressor,
        domain: Domain,
    ) -> None:
        self.traced = traced
        self.environment = environment
        self.domain = domain
        self._outside = outside
        self._layers = layers
        self._step = step
        self._tables: dict[tuple[str, tuple[str, ...]], Floats] = {}

    @property
    def block_size(self) -> int:
        """Tokens in one block of the engine's KV cache."""
        return self.environment.block_size

    def num_kv_blocks(self, serving: ServingConfig) -> int:
        """Return how many KV blocks the engine makes of `kv_cache_memory_bytes`, the null block included.

        Raises:
            UnsupportedModelError: The model attends over sliding windows.
        """
        windows = [op.module for op in self.traced.operations if op.attributes.get("sliding_window") not in {None, -1}]
        if windows:
            raise UnsupportedModelError(
                f"{self.traced.model}: {windows[0]} attends over a sliding window, whose KV cache groups the scheduler does "
                "not model yet; simulate a model with full attention"
            )
        block_bytes = 0
        for operation in self.traced.operations:
            if "num_kv_heads" in operation.attributes:
                a = operation.attributes
                item_bytes = cache_item_bytes(a["kv_cache_dtype"], serving.dtype)
                token_bytes = a["num_kv_heads"] * (a["head_size"] + (a["head_size_v"] or 0)) * item_bytes
                block_bytes += operation.count * token_bytes * self.block_size
        return serving.kv_cache_memory_bytes // block_bytes

    def step(self, batch: Batch, *, extrapolate: bool = False) -> StepLatency:
        """Predict one step, operation by operation.

        Args:
            batch: The scheduled batch.
            extrapolate: Predict outside what was measured as well, and flag it, instead of refusing.

        Raises:
            OutOfDomainError: The batch exceeds what was measured.
        """
        arrays = BatchArrays.of([batch])
        outside = not self._covers(arrays)
        if outside and not extrapolate:
            raise OutOfDomainError(self._beyond(arrays))
        parts: dict[str, float] = {}
        variance = 0.0
        for fitted in self._outside:
            nanoseconds = _predict(fitted, arrays)[0]
            parts[fitted.operation.module] = parts.get(fitted.operation.module, 0.0) + nanoseconds
            variance += (fitted.regressor.relative_error * nanoseconds) ** 2
        for layer in self._layers:
            inner = 0.0
            for fitted in layer.members:
                nanoseconds = _predict(fitted, arrays)[0]
                inner += nanoseconds
                path = generic_path(fitted.operation.module)
                parts[path] = parts.get(path, 0.0) + layer.operation.count * nanoseconds
            whole = layer.regressor.predict_ns(layer_terms(np.array([inner]), arrays), layer_features(arrays))[0]
            parts["layer"] = parts.get("layer", 0.0) + layer.operation.count * (whole - inner)
            variance += (layer.regressor.relative_error * layer.operation.count * whole) ** 2
        parts["step"] = self._step.predict_ns(step_terms(arrays), step_features(arrays))[0]
        variance += (self._step.relative_error * parts["step"]) ** 2
        seconds = {name: ns / 1e9 for name, ns in parts.items()}
        return StepLatency(sum(seconds.values()), variance**0.5 / 1e9, seconds, outside)

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
        if not self._covers(batches):
            raise OutOfDomainError(self._beyond(batches))
        total = self._step.predict_ns(step_terms(batches), step_features(batches))
        for fitted in self._outside:
            total += self._by_table(fitted, batches)
        attention: dict[str, Floats] = {}
        for layer in self._layers:
            inner = np.zeros(len(batches.new))
            for fitted in layer.members:
                signature = fitted.operation.signature
                if not fitted.work.is_attention:
                    inner += self._by_table(fitted, batches)
                    continue
                if signature not in attention:
                    attention[signature] = _predict(fitted, batches)
                inner += attention[signature]
            whole = layer.regressor.predict_ns(layer_terms(inner, batches), layer_features(batches))
            total += layer.operation.count * whole
        return np.asarray(np.maximum(np.rint(total), 1), dtype=np.int64)

    def _by_table(self, fitted: FittedOperation, batches: BatchArrays) -> Floats:
        """Predict an operation of one request dimension from a table over all its values, made at the first use."""
        key = (fitted.operation.signature, fitted.operation.request_dims)
        table = self._tables.get(key)
        per_token = fitted.operation.request_dims == ("num_tokens",)
        if table is None:
            sizes = np.arange(1, (self.domain.num_tokens if per_token else self.domain.num_reqs) + 1)
            rows = BatchArrays(sizes[:, None], np.zeros_like(sizes)[:, None], np.zeros_like(sizes))
            if not per_token:
                filled = (sizes[:, None] >= sizes[None, :]).astype(np.int64)
                rows = BatchArrays(filled, np.zeros_like(filled), np.zeros_like(sizes))
            table = self._tables[key] = _predict(fitted, rows)
        index = (batches.num_tokens if per_token else batches.num_reqs) - 1
        return np.asarray(table[index])

    def _covers(self, batches: BatchArrays) -> bool:
        return (
            int(batches.num_tokens.max()) <= self.domain.num_tokens
            and int(batches.num_reqs.max()) <= self.domain.num_reqs
            and int((batches.new + batches.computed).max()) <= self.domain.context
        )

    def _beyond(self, batches: BatchArrays) -> str:
        asked = {
            "--max-num-batched-tokens": (int(batches.num_tokens.max()), self.domain.num_tokens, "tokens"),
            "--max-num-seqs": (int(batches.num_reqs.max()), self.domain.num_reqs, "requests"),
            "--max-model-len": (int((batches.new + batches.computed).max()), self.domain.context, "tokens in one request"),
        }
        beyond = {flag: found for flag, found in asked.items() if found[0] > found[1]}
        facts = ", ".join(f"{value} {what} where {limit} were measured" for value, limit, what in beyond.values())
        return f"step: {facts}; profile {self.traced.model} with a larger {' and '.join(beyond)}, or simulate with a smaller"


def layer_terms(inner: Floats, batches: BatchArrays) -> Floats:
    """Return the base terms of a whole layer: its operations' sum, a constant, and a part per token."""
    return np.column_stack([inner, np.ones(len(inner)), batches.num_tokens])


def layer_features(batches: BatchArrays) -> Floats:
    """Return the tree features of a whole layer."""
    work = batches.attention(None)
    return np.column_stack([batches.num_tokens, batches.num_reqs, work.decode_kv_tokens, work.prefill_pairs])


def step_terms(batches: BatchArrays) -> Floats:
    """Return the base terms of the engine's own work in a step."""
    counts = (batches.num_reqs, batches.num_tokens, batches.num_new_requests)
    return np.column_stack([np.ones(len(batches.new)), *counts])


def step_features(batches: BatchArrays) -> Floats:
    """Return the tree features of the engine's own work in a step."""
    return np.column_stack([batches.num_reqs, batches.num_tokens, batches.num_new_requests])


def cache_item_bytes(kv_cache_dtype: str, dtype: str) -> int:
    """Return the size of one value in the KV cache, in bytes."""
    sizes = {"bfloat16": 2, "float16": 2, "float32": 4, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
    return sizes[dtype if kv_cache_dtype == "auto" else kv_cache_dtype]


def _predict(fitted: FittedOperation, batches: BatchArrays) -> Floats:
    return fitted.regressor.predict_ns(fitted.work.terms(batches), fitted.work.features(batches))


def generic_path(module: str) -> str:
    """Return a module path with the layer's number taken out."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
