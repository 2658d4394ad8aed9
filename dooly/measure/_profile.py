"""Profile a model: measure what the store lacks, point by point, each written as soon as it is known."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dbstore import Environment, JsonObject, Record, Store
from dooly.measure._cache import last_level_cache_bytes
from dooly.measure._contention import Contention
from dooly.measure._grid import measurement_batches
from dooly.measure._plan import STEP, key_of, layer_of, parameter_bytes, point_of
from dooly.measure._replay import Replay
from dooly.measure._steps import BatchRunner, time_steps
from dooly.measure._tasks import PASSES, infeasible_record, record_of
from dooly.measure._timer import timer_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from dooly.batch import Batch
    from dooly.engines import ServingConfig
    from dooly.engines.vllm import VllmEngine
    from dooly.measure._plan import Key
    from dooly.trace import TracedOperation

_REPLAY_BUDGET_NS = 150_000_000
_STEP_BUDGET_NS = 120_000_000


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

    def __init__(
        self,
        engine: VllmEngine,
        operations: tuple[TracedOperation, ...],
        layer_kinds: Mapping[str, list[str]],
        store: Store,
        environment: Environment,
    ) -> None:
        self._engine = engine
        self._operations = operations
        self._kinds = layer_kinds
        self._store = store
        self._environment = environment.digest
        self._timer = timer_for(environment.device_kind)
        self._cache_bytes = last_level_cache_bytes()

    def measure(self, task: Task) -> tuple[Record, ...]:
        """Measure one task, write its records, and return them."""
        begin, contention = time.perf_counter(), Contention()
        replayed = {key_of(op) for op in task.missing if op.stage != "engine"}
        own = [op for op in task.missing if op.stage == "engine"]
        samples: dict[Key, list[int]] = {}
        with BatchRunner(self._engine, task.batch).running() as runner:
            runner.step()
            if replayed:
                samples |= self._replay(runner, replayed)
            if own:
                samples |= self._own_times(runner, own)
        wall_s = (time.perf_counter() - begin) / len(samples)
        others_cores = contention.others_cores()
        records = tuple(self._record(op, task, samples[key_of(op)], wall_s, others_cores) for op in task.missing)
        self._store.write(*records)
        return records

    def give_up(self, task: Task, reason: str) -> tuple[Record, ...]:
        """Record a task as infeasible on this machine, and return the records; the sweep goes on with the next."""
        points = [((op.signature, self._environment), point_of(op, task.batch)) for op in task.missing]
        records = tuple(infeasible_record(key, point, task.number, reason) for key, point in points)
        self._store.write(*records)
        return records

    def compact(self) -> None:
        """Fold the store's one-point records of each operation into one group, so that reading them is fast."""
        for operation in self._operations:
            if self._store.points(operation.signature, self._environment):
                self._store.compact(operation.signature, self._environment)

    def _replay(self, runner: BatchRunner, operations: set[Key]) -> dict[Key, list[int]]:
        rows = [op for op in self._operations if key_of(op) in operations]
        timed = self._targets(rows)
        moved = sum(parameter_bytes(op) * len(self._modules(op)) for op in rows if op.stage == "decoder")
        # Too few weights to rotate over: the other operations run too, untimed, and keep the cache as a step keeps it.
        companions = self._operations if moved < 2 * self._cache_bytes else ()
        targets: dict[nn.Module, Key | None] = dict.fromkeys(self._targets(companions)) | timed
        replay = Replay(self._timer, targets, _REPLAY_BUDGET_NS)
        with replay.attached(self._engine.network):
            runner.step()
        return replay.samples_ns

    def _targets(self, operations: Iterable[TracedOperation]) -> dict[nn.Module, Key]:
        """Return the modules that run operations, with the operations' keys; a module that layers share comes once."""
        traced = [op for op in operations if op.stage != "engine"]
        return {self._module(path): key_of(op) for op in traced for path in self._modules(op)}

    def _own_times(self, runner: BatchRunner, own: list[TracedOperation]) -> dict[Key, list[int]]:
        """Time whole layers, and whole steps less the layers and modules in them."""
        outside = {m for op in self._operations if op.stage != "engine" for m, _ in op.placements if layer_of(m) is None}
        groups = {path: [self._module(m) for m in members] for path, members in self._kinds.items()}
        times = time_steps(runner, groups | {path: [self._module(path)] for path in sorted(outside)}, _STEP_BUDGET_NS)
        rest = [
            step - sum(ns for values in parts.values() for ns in values)
            for step, parts in zip(times.step_ns, times.parts_ns, strict=True)
        ]
        layers = {path: [ns for parts in times.parts_ns for ns in parts[path]] for path in self._kinds}
        return {key_of(op): rest if op.name == STEP else layers[op.module] for op in own}

    def _modules(self, operation: TracedOperation) -> list[str]:
        """Return the paths of all modules of the reduced engine that run an operation."""
        paths = []
        for module, _ in operation.placements:
            layer = layer_of(module)
            paths += [module] if layer is None else [m + module[len(layer) :] for m in self._kinds.get(layer, [])]
        return paths

    def _module(self, path: str) -> nn.Module:
        sampler: nn.Module = self._engine.runner.sampler
        return sampler if path == "sampler" else self._engine.network.get_submodule(path)

    def _record(self, operation: TracedOperation, task: Task, values: list[int], wall_s: float, others_cores: float) -> Record:
        facts = {"timer": self._timer.name, "pass": task.number, "wall_s": wall_s, "others_cores": others_cores}
        return record_of((operation.signature, self._environment), point_of(operation, task.batch), values, facts)


def describe_environment(engine: VllmEngine, serving: ServingConfig) -> Environment:
    """Return the environment that an engine measures in."""
    import torch
    import vllm

    return Environment(
        device=cpu_name(),
        device_kind=str(vllm.platforms.current_platform.device_type),
        driver=platform.release(),
        torch_version=torch.__version__,
        engine="vllm",
        engine_version=vllm.__version__,
        attention_backend=engine.attention_backend,
        dtype=serving.dtype,
        kv_cache_dtype="auto",
        block_size=engine.block_size,
        execution_mode="eager",
        quantization=None,
        num_threads=torch.get_num_threads(),
    )


def cpu_name() -> str:
    """Return the processor's name and number of cores."""
    from pathlib import Path

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name or platform.machine()} x{os.cpu_count()}"
