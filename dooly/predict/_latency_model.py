"""The latency of engine steps: what each operation takes, added up over a model's operations, with where each answer is from."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from dooly.catalog import kv_cache_layout
from dooly.errors import InvalidInputError
from dooly.predict._account import Account
from dooly.predict._features import BatchArrays
from dooly.predict._memory import num_kv_blocks
from dooly.predict._selections import Selections
from dooly.predict._step_prices import StepPrices
from dooly.predict._tables import LatencyTables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from dbstore import Environment
    from dooly.batch import Batch
    from dooly.catalog import KVCacheLayout
    from dooly.engines import ServingConfig
    from dooly.kv_policy import KVPolicy, SelectedPrompt
    from dooly.latency import HostTimes
    from dooly.power_cap import PowerCap
    from dooly.predict._domain import Domain
    from dooly.predict._fitted import FittedOperation
    from dooly.predict._hardware import Hardware
    from dooly.predict._step_latency import StepLatencies, StepLatency
    from dooly.predict._step_parts import StepParts
    from dooly.prices import PriceSheet
    from dooly.tracing import TracedModel, TracedOperation

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]


BLOCK_SIZE = 16
"""Tokens in a KV block, as vLLM has it on CUDA."""


class LatencyModel(Account):
    """Predicts how long an engine's steps take for one model in one environment.

    Meets `dooly.latency.LatencyBackend`, so that any simulator can price its batches with it.

    Examples:
        >>> latency = dooly.load_latency_model(model=dooly.find_model("llama-3.1-8b"), hardware="h200")
        >>> latency.step(dooly.Batch((1,) * 8, (1000,) * 8)).extrapolated
        False
        >>> latency.decode_run([1000] * 8, num_steps=100).seconds.shape
        (100,)
    """

    def __init__(  # noqa: PLR0913, PLR0917 - made by `load_latency_model` only
        self,
        traced: TracedModel,
        environment: Environment,
        parts: StepParts,
        domain: Domain,
        hardware: Hardware | None = None,
        host: HostTimes | None = None,
        *,
        captured_tokens: tuple[int, ...] = (),
        schedules_ahead: bool = False,
        notes: tuple[str, ...] = (),
        limited_by: Hardware | None = None,
    ) -> None:
        super().__init__(domain)
        self.traced = traced
        self.environment = environment
        self.hardware = hardware
        """The device whose shipped measurements these are; None where they are a store's."""
        self.host = host
        """What the engine's host takes to launch a step; None where records hold it, or nobody measured it."""
        self.schedules_ahead = schedules_ahead
        """Whether the engine schedules a step while another runs, as it does on a GPU by itself."""
        self.notes = notes
        """What is doubtful in the measurements that these latencies are from."""
        self.selections = Selections(traced, environment, hardware)
        self._parts = parts
        self._prices = StepPrices(traced.model, parts, domain, LatencyTables(domain, captured_tokens), hardware or limited_by)

    def within(
        self, domain: Domain, host: HostTimes | None, *, captured_tokens: tuple[int, ...], schedules_ahead: bool
    ) -> LatencyModel:
        """Return a model of the same operations within other limits; both share what is fitted and tabulated."""
        model = LatencyModel(
            *(self.traced, self.environment, self._parts, domain, self.hardware, host),
            captured_tokens=captured_tokens,
            schedules_ahead=schedules_ahead,
            notes=self.notes,
        )
        model._prices = self._prices.within(domain, captured_tokens)
        model.selections = self.selections
        return model

    @cached_property
    def power_cap(self) -> PowerCap | None:
        """What the device's power limit takes from products that run on without a pause; None where nobody measured it.

        Steps are priced without it, and `StepLatency.sustained_s` is the most that it makes of one. Whoever knows what runs
        behind what is between the two, by a `dooly.power_cap.PacedDevice` as `dooly.simulate` is.
        """
        return self._prices.power_cap

    @property
    def block_size(self) -> int:
        """Tokens in one block of the engine's KV cache: vLLM's own on CUDA, where nobody recorded it."""
        return self.environment.block_size or BLOCK_SIZE

    def kv_cache_layout(self, serving: ServingConfig) -> KVCacheLayout:
        """Return how the engine lays out the model's KV cache: groups of layers that keep the same tokens, and their blocks.

        Raises:
            UnsupportedModelError: A layer caches something that the scheduler does not model, or no layer caches anything.
        """
        return kv_cache_layout(self.traced, serving.dtype, self.block_size)

    def num_kv_blocks(self, serving: ServingConfig) -> int:
        """Return how many KV blocks the engine has, the null block included.

        They are what `num_gpu_blocks_override` says, or as many as `kv_cache_memory_bytes` holds; for a device whose measurements
        ship with Dooly, without either, as many as its memory has room for beside weights and activations.

        Raises:
            InvalidInputError: `kv_cache_memory_bytes` is more than the device has.
            UnsupportedModelError: As `kv_cache_layout` says.
        """
        if serving.num_gpu_blocks_override is not None:
            return serving.num_gpu_blocks_override
        return num_kv_blocks(self.traced, serving, self.kv_cache_layout(serving).block_bytes, self.hardware)

    @property
    def operations(self) -> tuple[FittedOperation, ...]:
        """The operations of one step with what predicts them, each once."""
        inside = (member for layer in self._parts.layers for member in layer.members)
        return tuple({fitted.operation.signature: fitted for fitted in (*self._parts.outside, *inside)}.values())

    def step(self, batch: Batch, *, extrapolate: bool = False) -> StepLatency:
        """Predict one step, operation by operation.

        A KV-cache policy of the serving settings is not priced here: it shows in what a batch's requests read, in its `attended`,
        and in `selection_ns`.

        Args:
            batch: The scheduled batch.
            extrapolate: Predict beyond the measured tokens, requests or context as well, and flag it, instead of refusing.

        Raises:
            InvalidInputError: It is no batch.
            OutOfDomainError: The batch exceeds what was measured.
        """
        return self.steps([batch], extrapolate=extrapolate)[0]

    def steps(self, batches: Sequence[Batch] | BatchArrays, *, extrapolate: bool = False) -> StepLatencies:
        """Predict many steps at once, operation by operation.

        Args:
            batches: The scheduled batches, or the same as arrays of shape (num_batches, num_reqs), which is faster.
            extrapolate: As `step` has it.

        Returns:
            Seconds, uncertainties, parts and provenance of each step, as arrays of shape (num_batches,).

        Raises:
            InvalidInputError: There is no batch, or something else in its place.
            OutOfDomainError: A batch exceeds what was measured.
        """
        if not len(batches):
            raise InvalidInputError("steps: no batch; give at least one")
        arrays = batches if isinstance(batches, BatchArrays) else BatchArrays.of(batches)
        return self._prices.latencies(arrays, extrapolate=extrapolate)

    def decode_run(
        self, num_computed_tokens: Ints | Sequence[int], num_steps: int, *, extrapolate: bool = False
    ) -> StepLatencies:
        """Predict consecutive decode steps over the same requests, each of whose contexts grows by one token a step.

        Args:
            num_computed_tokens: Context lengths at the first step, shape (num_reqs,).
            num_steps: How many steps.
            extrapolate: As `step` has it.

        Raises:
            InvalidInputError: There is no request or no step, or a context is negative or no whole number.
            OutOfDomainError: A step exceeds what was measured.
        """
        return self.steps(BatchArrays.decode_run(num_computed_tokens, num_steps), extrapolate=extrapolate)

    def operations_ns(self, batches: BatchArrays) -> Iterator[tuple[TracedOperation, Floats]]:
        """Yield the operations of a step, each of which it runs `count` times, and what one run takes in each batch.

        What layers and the engine take beyond them, where records tell it, is in none.

        Args:
            batches: The batches, of which operations see what their dimensions say.

        Yields:
            An operation, and nanoseconds of shape (num_batches,).

        Raises:
            OutOfDomainError: A batch exceeds what was measured.
        """
        return self._prices.operations_ns(batches, self.traced.operations)

    @property
    def gap_ns(self) -> float:
        """What passes between two kernels, in nanoseconds; each operation's own time holds it."""
        return self._parts.operations[0].gap_ns

    @property
    def is_sum_of_operations(self) -> bool:
        """Whether a step takes what its operations do, and neither layers nor the engine anything beyond."""
        return self._parts.runs is not None

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
        return self.steps_ns(BatchArrays.decode_run(num_computed_tokens, num_steps))

    def steps_ns(self, batches: BatchArrays) -> Ints:
        """Return the latencies of many steps, in nanoseconds, shape (num_batches,).

        Raises:
            OutOfDomainError: A step exceeds what was measured.
        """
        steps_ns, priced_ns = self._prices.quote(batches)
        self.account(priced_ns.sum(axis=0))
        return steps_ns

    def quote_ns(self, batch: Batch) -> int:
        """Return the latency of one step, in nanoseconds, which counts to no share of sources.

        Raises:
            OutOfDomainError: The batch exceeds what was measured.
        """
        return int(self._prices.quote(BatchArrays.of([batch]))[0][0])

    def quote_run(self, num_computed_tokens: Ints, num_steps: int) -> tuple[Ints, Floats]:
        """Return the latencies of consecutive decode steps, as `decode_run_ns`, and what to `account` for each that runs.

        The second has shape (num_steps, num_sources + 1).

        Raises:
            OutOfDomainError: A step exceeds what was measured.
        """
        return self._prices.quote(BatchArrays.decode_run(num_computed_tokens, num_steps))

    def price_sheet(self) -> PriceSheet | None:
        """Return what steps are priced by, as arrays for compiled loops; None where layers or steps take time of their own.

        Sources stand in the order measured, family, estimated. Whoever prices by the sheet says so with `account`.
        """
        return self._prices.sheet

    def selection_ns(self, policy: KVPolicy, prompts: Sequence[SelectedPrompt]) -> int:
        """Return what a policy takes to score and choose for prompts, in nanoseconds; raises as `Selections.latency`."""
        found = [self.selections.latency(policy, *prompt) for prompt in prompts]
        for each in found:
            self.account_selection(each)
        return round(sum(each.ns for each in found))
