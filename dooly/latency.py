"""The contract between latency predictors and simulators.

`LatencyBackend` is what `dooly.simulation` asks of a predictor; `dooly.predict.LatencyModel` meets it, and so may any other.
`HostTimes` is what the engine's host adds where it schedules ahead and its device waits for it; `dooly.power_cap` has what the
device's own power limit adds where prompts follow each other without a pause.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import inf
from numbers import Integral
from typing import TYPE_CHECKING, Protocol, TypeGuard, runtime_checkable

import numpy as np

from dooly.batch import Batch
from dooly.errors import InvalidInputError, spell
from dooly.prices import PriceSheet, price_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from dooly.kv_policy import KVPolicy, SelectedPrompt
    from dooly.power_cap import PowerCap


class LatencyBackend(Protocol):
    """Predicts how long engine steps take. Times are integer nanoseconds.

    A predictor that derives from it needs `step_ns` only; what it knows of host and power limit, it says under these names.

    Examples:
        >>> class Linear(dooly.latency.LatencyBackend):
        ...     def step_ns(self, batch):
        ...         return 2_000_000 + 10_000 * batch.num_tokens
        >>> Linear().step_ns(dooly.Batch((1, 100), (50, 0)))
        3010000
        >>> import numpy as np
        >>> Linear().decode_run_ns(np.array([50, 60]), 2)
        array([2020000, 2020000])
    """

    host: HostTimes | None = None
    """What the engine's host takes to launch steps on the device; None where steps hold it, or nobody knows."""

    @cached_property
    def power_cap(self) -> PowerCap | None:
        """What the device's power limit takes from steps that follow each other without a pause; None likewise."""
        return None

    @abstractmethod
    def step_ns(self, batch: Batch) -> int:
        """Return the latency of one step over `batch`."""
        ...

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Return the latencies of `num_steps` consecutive decode steps over the same requests.

        `num_computed_tokens` has shape (num_reqs,) and holds the first step's context lengths; each grows by one a step. The
        result has shape (num_steps,) and equals `step_ns` of each step's batch, one by one where a predictor has nothing faster.
        """
        ones = (1,) * len(num_computed_tokens)
        contexts = (tuple((num_computed_tokens + grown).tolist()) for grown in range(num_steps))
        return np.array([asked_step_ns(self, Batch(ones, computed, 0)) for computed in contexts], dtype=np.int64)


@runtime_checkable
class SheetBackend(LatencyBackend, Protocol):
    """A predictor whose steps a compiled loop can price: by closed formulas, tables, and attention by trees.

    Simulations that ask for no log of steps take it at its sheet, many times faster, where they know how. What the sheet says of
    a step must be what `step_ns` does. A class that derives from one with a sheet and prices steps in its own way is asked for
    these, unless it has a sheet of its own too.
    """

    @abstractmethod
    def price_sheet(self) -> PriceSheet | None:
        """Return what steps are priced by; None where they cannot be so, and `step_ns` is to be asked."""
        ...

    @abstractmethod
    def account(self, priced_ns: npt.NDArray[np.float64]) -> None:
        """Note what was priced by the sheet.

        Args:
            priced_ns: Nanoseconds of all steps by the sheet's sources, and in the last place those of steps beyond its reach,
                shape (num_sources + 1,).
        """
        ...


@runtime_checkable
class AccountingBackend(LatencyBackend, Protocol):
    """A predictor that keeps account of where the nanoseconds of the steps that it prices are from.

    Simulators price steps that then do not run, as an arrival comes between, and a drafter's passes by the model's: they ask
    these for a quote, and say what has run.
    """

    @abstractmethod
    def quote_ns(self, batch: Batch) -> int:
        """Return the latency of one step as `step_ns` does, of which no account is kept."""
        ...

    @abstractmethod
    def quote_run(
        self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the latencies of decode steps as `decode_run_ns` does, and what to account for each, which is not done.

        That has shape (num_steps, num_sources + 1), a row as `account` takes it.
        """
        ...

    @abstractmethod
    def account(self, priced_ns: npt.NDArray[np.float64]) -> None:
        """Note what has run: nanoseconds by source, and in the last place the extrapolated ones, shape (num_sources + 1,)."""
        ...

    @abstractmethod
    def account_estimate(self, latency_ns: float) -> None:
        """Note nanoseconds that were told rather than predicted, as of a drafter: an estimate."""
        ...


@runtime_checkable
class SelectingBackend(LatencyBackend, Protocol):
    """A predictor that knows what a KV-cache policy's scoring and choosing takes; with others it takes nothing."""

    @abstractmethod
    def selection_ns(self, policy: KVPolicy, prompts: Sequence[SelectedPrompt]) -> int:
        """Return what selecting takes for prompts that one step ends, one after the other, in nanoseconds."""
        ...


_LONGEST_NS = 1 << 53
"""A hundred days, which no step takes."""


def asked_step_ns(latency: LatencyBackend, batch: Batch) -> int:
    """Return what a predictor says that one step takes, where that is a time.

    Raises:
        InvalidInputError: It is no whole number of nanoseconds from 0.
    """
    found = latency.step_ns(batch)
    if not isinstance(found, Integral) or not 0 <= found <= _LONGEST_NS:
        raise InvalidInputError(_no_time(latency, "step_ns", found, "an integer"))
    return int(found)


def checked_run_ns(latency: LatencyBackend, method: str, found: npt.ArrayLike, num_steps: int) -> npt.NDArray[np.int64]:
    """Return what a predictor's method said that consecutive decode steps take, shape (num_steps,), where these are times.

    Raises:
        InvalidInputError: They are no whole numbers of nanoseconds from 0, one a step.
    """
    run_ns = np.asarray(found)
    if run_ns.shape != (num_steps,) or run_ns.dtype.kind not in "iu" or not 0 <= run_ns.min() <= run_ns.max() <= _LONGEST_NS:
        raise InvalidInputError(_no_time(latency, method, found, f"an array of {num_steps} integers"))
    return run_ns.astype(np.int64, copy=False)


def _no_time(latency: LatencyBackend, method: str, found: object, rule: str) -> str:
    return f"{type(latency).__name__}.{method}: returned {spell(found)}; return {rule}: nanoseconds, at least 0"


def keeps_account(latency: LatencyBackend) -> TypeGuard[AccountingBackend]:
    """Tell whether a predictor keeps account, and quotes what it prices: a subclass that only prices anew is asked for prices."""
    return _quotes_what_it_prices(type(latency))


@lru_cache(maxsize=64)
def _quotes_what_it_prices(kind: type) -> bool:
    """Tell whether a class keeps account, and none that is more special than the one that quotes prices steps."""
    pairs = (("quote_ns", "step_ns"), ("quote_run", "decode_run_ns"))
    return hasattr(kind, "account_estimate") and all(_place(kind, quote) <= _place(kind, price) for quote, price in pairs)


def prices_by_sheet(latency: LatencyBackend) -> TypeGuard[SheetBackend]:
    """Tell whether a predictor has a sheet that is its own: a subclass that only prices anew is asked for prices."""
    kind = type(latency)
    prices = ("step_ns", "decode_run_ns")
    return isinstance(latency, SheetBackend) and all(_place(kind, "price_sheet") <= _place(kind, price) for price in prices)


def _place(kind: type, method: str) -> int:
    """Return which class in the order of resolution defines a method."""
    return next(place for place, base in enumerate(kind.__mro__) if method in vars(base))


class LinearLatency(SheetBackend):
    """Prices steps by a closed formula: a fixed part, and one for each token, request and so on.

    All arguments are nanoseconds, and none of them negative; a step takes at least one.
    """

    def __init__(  # noqa: PLR0913 - the terms of the formula
        self,
        step_ns: float,
        *,
        per_token_ns: float = 0.0,
        per_request_ns: float = 0.0,
        per_new_request_ns: float = 0.0,
        per_cached_token_ns: float = 0.0,
        per_query_key_pair_ns: float = 0.0,
    ) -> None:
        """Create the formula.

        Args:
            step_ns: Of each step.
            per_token_ns: Of each token that it computes.
            per_request_ns: Of each request in it.
            per_new_request_ns: Of each request that no earlier step held.
            per_cached_token_ns: Of each token that its requests have in the KV cache.
            per_query_key_pair_ns: Of each token with each of those that it attends to, itself included.

        Raises:
            InvalidInputError: A part is negative or not finite.
        """
        parts = (step_ns, per_token_ns, per_request_ns, per_new_request_ns, per_cached_token_ns, per_query_key_pair_ns)
        if not all(0 <= part < inf for part in parts):
            raise InvalidInputError(f"LinearLatency: all parts must be finite and at least 0 ns, got {parts}")
        table = np.empty((1, 0))
        self._sheet = PriceSheet(np.array(parts, np.float64), table, table)

    def step_ns(self, batch: Batch) -> int:
        """Return the latency of one step, in nanoseconds."""
        new, computed = (np.array([counts], np.int64) for counts in (batch.num_new_tokens, batch.num_computed_tokens))
        steps_ns, _ = price_batches(self._sheet, new, computed, np.array([batch.num_new_requests]))
        if not batch.attended:
            return int(steps_ns[0])
        num_pairs = sum(share * view.num_query_key_pairs for share, view in batch.attended) - batch.num_query_key_pairs
        return max(1, round(int(steps_ns[0]) + float(self._sheet.per_ns[-1]) * num_pairs))

    def decode_run_ns(self, num_computed_tokens: npt.NDArray[np.int64], num_steps: int) -> npt.NDArray[np.int64]:
        """Return the latencies of consecutive decode steps, in nanoseconds, shape (num_steps,)."""
        computed = num_computed_tokens[None, :] + np.arange(num_steps)[:, None]
        return price_batches(self._sheet, np.ones_like(computed), computed, np.zeros(num_steps, np.int64))[0]

    def price_sheet(self) -> PriceSheet:
        """Return the formula as a sheet."""
        return self._sheet

    def account(self, priced_ns: npt.NDArray[np.float64]) -> None:
        """Do nothing: where a formula's nanoseconds are from is known."""


@dataclass(frozen=True, slots=True)
class HostTimes:
    """What an engine's host takes to launch a step on a device, in integer nanoseconds.

    vLLM captures decodes whole in CUDA graphs, and steps with prompts in pieces around attention, both up to a number of tokens;
    beyond it each kernel is launched on its own. While the device is busier than the host, none of this shows.

    Raises:
        InvalidInputError: A time is negative, or launching a step takes less than preparing it.
    """

    prepare_ns: int = 0
    """From scheduling a step to its first kernel."""
    whole_ns: int = 0
    """All of a step of decodes, captured whole."""
    pieces_ns: int = 0
    """All of a step with prompts, captured in pieces."""
    plain_ns: int = 0
    """All of a step that is not captured."""
    max_captured_tokens: int = 512
    """Tokens of the largest step that is captured."""

    def __post_init__(self) -> None:
        launches = (self.whole_ns, self.pieces_ns, self.plain_ns)
        if self.prepare_ns < 0 or min(launches) < self.prepare_ns:
            raise InvalidInputError(
                f"HostTimes: preparing a step takes {self.prepare_ns} ns, launching it {launches}; lower the first"
            )

    def launch_ns(self, num_tokens: int, *, only_decodes: bool) -> int:
        """Return what launching a step takes."""
        if num_tokens > self.max_captured_tokens:
            return self.plain_ns
        return self.whole_ns if only_decodes else self.pieces_ns

    def launched_ns(self, now_ns: int, free_ns: int, launch_ns: int, step_ns: int) -> tuple[int, int]:
        """Return when a step has run that is scheduled now behind others, and when the host schedules the next.

        Args:
            now_ns: When the step is scheduled.
            free_ns: When the device has run what is before it.
            launch_ns: What launching it takes.
            step_ns: What it takes on the device.
        """
        end_ns = max(max(free_ns, now_ns + self.prepare_ns) + step_ns, now_ns + launch_ns)
        return end_ns, max(now_ns + launch_ns, free_ns)

    def of_layers(self, factor: float, experts_ns: float = 0.0) -> HostTimes:
        """Return the times of a model with so many times the layers: pieces and kernels of each are launched on their own.

        Decodes are one graph whatever the model, and steps are prepared alike.

        Args:
            factor: Layers of the model over those that these times are of.
            experts_ns: What launching the mixtures of experts of all layers takes beside, where nothing is captured.
        """
        pieces, plain = round(factor * self.pieces_ns), round(factor * self.plain_ns + experts_ns)
        return replace(self, pieces_ns=max(self.prepare_ns, pieces), plain_ns=max(self.prepare_ns, plain))


_SLOWEST = 1000
"""How many times as long as one host another may take: what goes beyond is no host."""


def slowed_host(host: HostTimes | None, factor: float | None) -> HostTimes | None:
    """Return the times of a host that takes so many times as long; None for a factor is as long.

    Raises:
        InvalidInputError: There are no times to slow, or the factor is no number above 0 and up to 1,000.
    """
    if factor is None:
        return host
    if host is None:
        msg = "nobody measured a host beside this device, or its records hold what it does; leave it out"
        raise InvalidInputError(f"--host-slowdown: {msg}")
    if not 0 < factor <= _SLOWEST:
        raise InvalidInputError(f"--host-slowdown: {factor} is no number above 0 and up to {_SLOWEST}")
    names = ("prepare_ns", "whole_ns", "pieces_ns", "plain_ns")
    return replace(host, **{name: round(factor * getattr(host, name)) for name in names})
