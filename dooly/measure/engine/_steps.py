"""Realise a batch on a running engine, and time its steps with the modules in them."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import ceil
from statistics import mean
from typing import TYPE_CHECKING, Any

from dooly.catalog import DECODE_GROWTH_TOKENS
from dooly.errors import MeasurementError
from dooly.measure._tasks import InfeasibleBatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

    from dooly.batch import Batch
    from dooly.catalog import Key
    from dooly.engines import Engine
    from dooly.measure.timers import Timer

    Watching = Callable[[Callable[[str, Any, Any], None]], AbstractContextManager[None]]

MIN_STEPS, MAX_STEPS = 2, 8


@dataclass(slots=True)
class StepTimes:
    """What steps over one batch took, in nanoseconds, a step an entry."""

    step_ns: list[int] = field(default_factory=list)
    """Queueing the new requests and running the step."""
    parts_ns: list[dict[str, list[int]]] = field(default_factory=list)
    """Time inside each group of modules, a call an entry, by the group's name."""


class BatchRunner:
    """Keeps an engine at one batch: decodes run on, new requests are queued anew before every step.

    Raises:
        MeasurementError: A request of several new tokens does not count as new.
        InfeasibleBatchError: The engine's KV cache is too small for the batch.
    """

    def __init__(self, engine: Engine, batch: Batch) -> None:
        self._engine = engine
        self._batch = batch
        self._decodes: list[str] = []
        self._fresh: list[str] = []
        if any(new > 1 for new in batch.num_new_tokens[: batch.num_reqs - batch.num_new_requests]):
            raise MeasurementError("batch: requests of several new tokens must stand last and count as new; reorder the batch")
        pairs = zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True)
        blocks = sum(ceil((new + computed + DECODE_GROWTH_TOKENS) / engine.block_size) for new, computed in pairs)
        if blocks >= engine.num_kv_blocks:  # one of them is the engine's null block
            raise InfeasibleBatchError(
                f"batch of {batch.num_reqs} requests: needs {blocks} KV blocks, the engine has {engine.num_kv_blocks - 1}"
            )

    @contextmanager
    def running(self) -> Iterator[BatchRunner]:
        """Hold the batch's decodes in the engine for the length of the scope."""
        pairs = list(zip(self._batch.num_new_tokens, self._batch.num_computed_tokens, strict=True))
        number = self._batch.num_reqs - self._batch.num_new_requests
        try:
            for _, computed in pairs[:number]:
                prompt = self._engine.prompt(computed)
                # One token short of the wanted context: the first step, untimed, computes it and makes the request a decode.
                self._decodes.append(self._engine.add(prompt, DECODE_GROWTH_TOKENS, max(computed - 1, 0)))
            if self._decodes:
                self._engine.step()
            yield self
        finally:
            self._engine.abort(self._decodes + self._fresh)

    def step(self) -> int:
        """Queue the new requests, run one step, and return both together, in nanoseconds.

        Raises:
            InfeasibleBatchError: The engine scheduled another batch.
        """
        self._engine.abort(self._fresh)
        pairs = list(zip(self._batch.num_new_tokens, self._batch.num_computed_tokens, strict=True))
        fresh = [(self._engine.prompt(n + c), c) for n, c in pairs[self._batch.num_reqs - self._batch.num_new_requests :]]
        begin = time.perf_counter_ns()
        self._fresh = [self._engine.add(prompt, 2, computed) for prompt, computed in fresh]
        outputs = self._engine.step()
        elapsed = time.perf_counter_ns() - begin
        if len(outputs) != self._batch.num_reqs:
            msg = f"batch of {self._batch.num_reqs} requests: the engine ran {len(outputs)}; its limits are below the grid's"
            raise InfeasibleBatchError(msg)
        return elapsed


def time_steps(  # noqa: PLR0913 - what is timed, by what, and for how long
    runner: BatchRunner,
    groups: Mapping[str, list[nn.Module]],
    timer: Timer,
    budget_ns: int,
    *,
    watch: Watching = lambda _note: nullcontext(),
    max_steps: int = MAX_STEPS,
) -> StepTimes:
    """Time steps over a batch, and groups of modules inside them.

    Steps are timed by the host's clock: the engine returns when it has the sampled tokens. Modules are timed by marks in the
    device's work, which on a GPU include its waiting for the host's launches, as the step does.

    Args:
        runner: The batch, running.
        groups: The modules to time, by a name for those that count together; none may lie inside another.
        timer: The device's timer.
        budget_ns: Time to spend at most.
        watch: Notes parts of steps that are no module calls, while the steps run.
        max_steps: Most steps to run.
    """
    times = StepTimes()
    current: dict[str, list[tuple[Any, Any]]] = {}
    begun: list[Any] = []
    handles = []
    for path, modules in groups.items():

        def finish(*_arguments: object, path: str = path) -> None:
            current.setdefault(path, []).append((begun.pop(), timer.mark()))

        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: begun.append(timer.mark())))
            handles.append(module.register_forward_hook(finish))
    try:
        spent = 0
        with watch(lambda name, begin, end: current.setdefault(name, []).append((begin, end))):
            while len(times.step_ns) < MIN_STEPS or (spent < budget_ns and len(times.step_ns) < max_steps):
                current.clear()
                elapsed = runner.step()
                spent += elapsed
                times.step_ns.append(elapsed)
                times.parts_ns.append({path: [timer.elapsed_ns(*pair) for pair in pairs] for path, pairs in current.items()})
    finally:
        for handle in handles:
            handle.remove()
    return times


def samples_of(times: StepTimes, parts: Mapping[Key, Sequence[str]]) -> dict[Key, list[int]]:
    """Return one sample a step of each operation: what its runs in the step took on average.

    A step is made of all runs, and a few of them take far longer than most: layers of one kind a twentieth longer on average than
    in the median, at decodes on two cores. Nor does a compiler treat pieces of one signature alike: one keeps the residual in
    memory, another computes it again.

    Args:
        times: The steps.
        parts: The names of the parts of a step that run each operation.
    """
    found = {}
    for key, names in parts.items():
        runs = [[ns for name in names for ns in step.get(name, ())] for step in times.parts_ns]
        found[key] = [round(mean(step)) for step in runs]
    return found


def rest_of(times: StepTimes) -> list[int]:
    """Return what each step took beyond its parts, in nanoseconds."""
    pairs = zip(times.step_ns, times.parts_ns, strict=True)
    return [step - sum(ns for values in parts.values() for ns in values) for step, parts in pairs]
