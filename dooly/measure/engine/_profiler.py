"""Profile a model: measure what the store lacks, point by point, each written as soon as it is known."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

from dooly.catalog import PASSES, STEP, key_of, measurement_batches, parameter_bytes, point_of
from dooly.device import cache_bytes
from dooly.measure._tasks import infeasible_record, record_of
from dooly.measure.engine._pieces import piece_name, watch_pieces
from dooly.measure.engine._replay import Replay
from dooly.measure.engine._steps import BatchRunner, rest_of, samples_of, time_steps
from dooly.measure.timers import Watch, timer_for
from dooly.predict import drop_fits_of_other_code
from dooly.tracing import layer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import nn

    from dbstore import JSON, Environment, JsonObject, Record, Store
    from dooly.batch import Batch
    from dooly.catalog import Key
    from dooly.device import Clocks
    from dooly.engines import Engine, ServingConfig
    from dooly.tracing import TracedOperation

_REPLAY_BUDGET_NS = 150_000_000
_STEP_BUDGET_NS = 120_000_000
_COMPILED_BUDGET_NS, _COMPILED_MAX_STEPS = 270_000_000, 24


@dataclass(frozen=True, slots=True)
class Task:
    """One batch and the operations that lack a record at it."""

    number: int
    """The pass that it belongs to, from 0."""
    batch: Batch
    """The batch to run."""
    missing: tuple[TracedOperation, ...]
    """The operations to measure."""


def plan_tasks(
    operations: tuple[TracedOperation, ...], serving: ServingConfig, count: Callable[[str, JsonObject], int]
) -> tuple[Task, ...]:
    """Return the batches to run, pass by pass, each with the operations that no earlier batch and no record covers.

    Args:
        operations: The operations that one step runs.
        serving: The engine's limits, which bound the batches.
        count: How many records the store has of (signature, point).
    """
    tasks = []
    for number in range(PASSES):
        planned: set[tuple[str, JsonObject]] = set()
        for batch in measurement_batches(serving):
            missing = []
            for operation in operations:
                key = (operation.signature, point_of(operation, batch))
                if key not in planned and count(*key) <= number:
                    planned.add(key)
                    missing.append(operation)
            if missing:
                tasks.append(Task(number, batch, tuple(missing)))
    return tuple(tasks)


class Profiler:
    """Measures tasks on a reduced engine and writes their records."""

    def __init__(self, engine: Engine, operations: tuple[TracedOperation, ...], store: Store, environment: Environment) -> None:
        self._engine = engine
        self._operations = operations
        self._kinds = engine.layer_kinds()
        self._store = store
        self._environment = environment.digest
        self._is_compiled = any(operation.is_piece for operation in operations)
        device = next(engine.network.parameters()).device
        self._timer = timer_for(device)
        self._watch = Watch(self._timer, device)
        self._cache_bytes = cache_bytes(environment.device_kind)

    def measure(self, task: Task) -> tuple[Record, ...]:
        """Measure one task, write its records, and return them."""
        begin = time.perf_counter()
        self._watch.begin()
        replayed = {key_of(op) for op in task.missing if op.stage != "engine"}
        own = [op for op in task.missing if op.stage == "engine"]
        samples: dict[Key, list[int]] = {}
        how: dict[Key, dict[str, JSON]] = {}
        with BatchRunner(self._engine, task.batch).running() as runner:
            runner.step()
            if self._is_compiled:
                samples = self._compiled_times(runner, task.missing)
                how = {key: {"timing": self._timer.mark_timing} for key in samples}
            elif replayed:
                replay = self._replay(runner, replayed)
                samples |= replay.samples_ns
                how |= replay.attributes
            clocks = self._timer.clocks()
            if own and not self._is_compiled:
                samples |= self._own_times(runner, own)
                how |= {key_of(op): {"timing": "perf_counter" if op.name == STEP else self._timer.mark_timing} for op in own}
        watched = self._watch.facts()
        wall_s = (time.perf_counter() - begin) / len(samples)
        shared = {"pass": task.number, "wall_s": wall_s, **watched, **_clock_attributes(clocks)}
        records = tuple(self._record(op, task, samples[key_of(op)], shared | how[key_of(op)]) for op in task.missing)
        self._store.write(*records)
        return records

    def give_up(self, task: Task, reason: str) -> tuple[Record, ...]:
        """Record a task as infeasible on this machine, and return the records; the sweep goes on with the next."""
        points = [((op.signature, self._environment), point_of(op, task.batch)) for op in task.missing]
        records = tuple(infeasible_record(key, point, task.number, reason) for key, point in points)
        self._store.write(*records)
        return records

    def compact(self) -> None:
        """Fold each operation's one-point records into one group, so that reading is fast; drop fits of other code."""
        for signature in sorted({operation.signature for operation in self._operations}):
            if self._store.points(signature, self._environment):
                self._store.compact(signature, self._environment)
        drop_fits_of_other_code(self._store)

    def _replay(self, runner: BatchRunner, operations: set[Key]) -> Replay:
        rows = [op for op in self._operations if key_of(op) in operations]
        timed = self._targets(rows)
        moved = sum(parameter_bytes(op) * len(self._modules(op)) for op in rows if op.stage == "decoder")
        # Too few weights to rotate over: the other operations run too, untimed, and keep the cache as a step keeps it.
        companions = self._operations if moved < 2 * self._cache_bytes else ()
        targets: dict[nn.Module, Key | None] = dict.fromkeys(self._targets(companions)) | timed
        replay = Replay(self._timer, targets, _REPLAY_BUDGET_NS)
        with replay.attached(self._engine.network):
            runner.step()
        return replay

    def _targets(self, operations: Iterable[TracedOperation]) -> dict[nn.Module, Key]:
        """Return the modules that run operations, with the operations' keys; a module that layers share comes once."""
        traced = [op for op in operations if op.stage != "engine"]
        return {self._module(path, op.stage): key_of(op) for op in traced for path in self._modules(op)}

    def _own_times(self, runner: BatchRunner, own: list[TracedOperation]) -> dict[Key, list[int]]:
        """Time whole layers, and whole steps less the layers and modules in them."""
        network = self._engine.network
        layers = {path: [network.get_submodule(member) for member in members] for path, members in self._kinds.items()}
        traced = [op for op in self._operations if op.stage != "engine"]
        # A module that runs in two stages counts once.
        outside = {self._module(m, op.stage): m for op in traced for m, _ in op.placements if layer_of(m) is None}
        others = {f"{path} {place}": [module] for place, (module, path) in enumerate(outside.items())}
        times = time_steps(runner, layers | others, self._timer, _STEP_BUDGET_NS)
        whole = samples_of(times, {key_of(op): [op.module] for op in own if op.name != STEP})
        return whole | {key_of(op): rest_of(times) for op in own if op.name == STEP}

    def _compiled_times(self, runner: BatchRunner, missing: Sequence[TracedOperation]) -> dict[Key, list[int]]:
        """Time the operations of a compiled model, and whole steps less all of them, in real steps."""
        stateful = {key_of(op): self._modules(op) for op in self._operations if op.stage == "decoder" and not op.is_piece}
        pieces = {key_of(op): list(map(piece_name, self._modules(op))) for op in self._operations if op.is_piece}
        modules = self._targets(op for op in self._operations if op.stage not in {"decoder", "engine"})
        outside = {f"{place}": [module] for place, module in enumerate(modules)}
        parts = stateful | pieces | {key: [f"{place}"] for place, key in enumerate(modules.values())}
        watch = partial(watch_pieces, self._engine, self._timer)
        times = time_steps(runner, outside, self._timer, _COMPILED_BUDGET_NS, watch=watch, max_steps=_COMPILED_MAX_STEPS)
        samples = samples_of(times, parts)
        samples |= {key_of(op): rest_of(times) for op in missing if op.name == STEP and op.stage == "engine"}
        return {key_of(op): samples[key_of(op)] for op in missing}

    def _modules(self, operation: TracedOperation) -> list[str]:
        """Return the paths of all modules of the reduced engine that run an operation."""
        paths = []
        for module, _ in operation.placements:
            layer = layer_of(module)
            paths += [module] if layer is None else [m + module[len(layer) :] for m in self._kinds.get(layer, ())]
        return paths

    def _module(self, path: str, stage: str) -> nn.Module:
        """Return the module at a path of the engine's model; sampling lies outside of it."""
        return self._engine.sampler if stage == "sample" else self._engine.network.get_submodule(path)

    def _record(self, operation: TracedOperation, task: Task, values: list[int], facts: dict[str, JSON]) -> Record:
        return record_of((operation.signature, self._environment), point_of(operation, task.batch), values, facts)


def _clock_attributes(clocks: Clocks | None) -> dict[str, JSON]:
    return {} if clocks is None else {**asdict(clocks), "throttling": list(clocks.throttling)}
