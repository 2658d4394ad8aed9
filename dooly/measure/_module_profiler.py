"""Profile a traced plain module: run its forward operation by operation at the request dimensions that the store lacks."""

from __future__ import annotations

import platform
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING, Any

from dbstore import Environment
from dooly.errors import MeasurementError
from dooly.measure._cache import last_level_cache_bytes
from dooly.measure._contention import Contention
from dooly.measure._environment import cpu_name
from dooly.measure._plan import parameter_bytes
from dooly.measure._replay import MAX_ROUNDS, MIN_ROUNDS, is_tight
from dooly.measure._tasks import infeasible_record, record_of
from dooly.measure._timer import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from dbstore import JsonObject, Record, Store
    from dooly.trace import Traced
    from passes.pipeline import Analysis

_BUDGET_NS = 300_000_000
_MAX_COPIES = 256
_MAX_COPIED_BYTES = 1 << 30

ModuleKey = tuple[str, "JsonObject"]
"""Signature and point: one operation may run over several sizes within one forward."""


@dataclass(frozen=True, slots=True)
class ModuleTask:
    """Sizes of a module's request dimensions, and what lacks a record at them."""

    number: int
    """The pass that it belongs to, from 0."""
    sizes: Mapping[str, int]
    """The request dimensions by name."""
    missing: tuple[ModuleKey, ...]
    """What to measure; the module's own signature stands for its whole forward."""


class ModuleProfiler:
    """Measures tasks on copies of a module and writes their records.

    Each round runs the whole forward, and then its operations one by one. The copies take turns, so that parameters were last
    read twice the last-level cache ago; operands come from the operations before, as they do in the module.
    """

    def __init__(
        self,
        traced: Traced,
        analysis: Analysis,
        keys_at: Callable[[Mapping[str, int]], Sequence[ModuleKey]],
        store: Store,
        environment: Environment,
    ) -> None:
        """Take `keys_at` for the keys of the analysed operations at given sizes, in order, and the whole module's at the end."""
        from dooly.measure._subgraph import split_graph

        self._traced = traced
        self._captured = traced.captured
        self._origins = analysis.origins
        self._pieces = split_graph(self._captured, [analysed.operation for analysed in analysis.operations])
        self._keys_at = keys_at
        self._store = store
        self._environment = environment.digest
        self._copies = cycle(module_copies(traced))
        self._written: set[str] = set()

    def measure(self, task: ModuleTask) -> tuple[Record, ...]:
        """Measure one task, write its records, and return them."""
        begin, contention = time.perf_counter(), Contention()
        try:
            samples = self._rounds(task)
        except (IndexError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            raise MeasurementError(
                f"{type(self._traced.module).__name__}: forward fails at {_spell(task.sizes)}: {reason}; leave those sizes out"
            ) from error
        wall_s = (time.perf_counter() - begin) / len(task.missing)
        facts = {"timing": "perf_counter", "pass": task.number, "wall_s": wall_s, "others_cores": contention.others_cores()}
        return self._write(
            [
                record_of((signature, self._environment), point, samples[signature, point], facts)
                for signature, point in task.missing
            ]
        )

    def give_up(self, task: ModuleTask, reason: str) -> tuple[Record, ...]:
        """Record a task as infeasible on this machine, and return the records; the sweep goes on with the next."""
        keys = [((signature, self._environment), point) for signature, point in task.missing]
        return self._write([infeasible_record(key, point, task.number, reason) for key, point in keys])

    def compact(self) -> None:
        """Fold the records that were written, an operation a group, so that reading them is fast."""
        for signature in sorted(self._written):
            self._store.compact(signature, self._environment)

    def _write(self, records: list[Record]) -> tuple[Record, ...]:
        self._store.write(*records)
        self._written.update(record.signature for record in records)
        return tuple(records)

    def _rounds(self, task: ModuleTask) -> dict[ModuleKey, list[int]]:
        import torch

        from dooly.measure._arguments import arguments_at, graph_values, symbol_values, tensor_values
        from dooly.measure._subgraph import run_pieces

        symbols = symbol_values(self._captured, self._origins, task.sizes)
        bound = arguments_at(self._traced, self._captured, symbols)
        constants = graph_values(self._captured, symbols)
        *keys, whole = self._keys_at(task.sizes)
        samples: dict[ModuleKey, list[int]] = {}

        def timed(key: ModuleKey, call: Callable[[], Any]) -> Any:  # noqa: ANN401 - what the call returns
            begin = time.perf_counter_ns()
            result = call()
            samples.setdefault(key, []).append(time.perf_counter_ns() - begin)
            return result

        begin = time.perf_counter_ns()
        with torch.no_grad(), torch.random.fork_rng():
            for round_ in range(MAX_ROUNDS):
                timed(whole, partial(next(self._copies), *bound.args, **bound.kwargs))
                tensors = tensor_values(self._captured, next(self._copies), bound)
                run_pieces(self._pieces, {**constants, **tensors}, lambda place, call: timed(keys[place], call))
                if round_ == 0:  # warms up
                    samples.clear()
                tight = all(is_tight(samples[key]) for key in task.missing) if samples else False
                if round_ + 1 >= MIN_ROUNDS and (tight or time.perf_counter_ns() - begin > _BUDGET_NS):
                    break
        return samples


def _spell(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def module_copies(traced: Traced) -> list[nn.Module]:
    """Return a traced module, and as many copies of it as keep its parameters out of the last-level cache when all take turns.

    A module of no more than a few kilobytes gets no more copies than 256, and copies take 1 GiB at most.
    """
    module = traced.module
    read_bytes = sum(parameter_bytes(op) * op.count for op in traced.traced.operations)
    cache_bytes = 2 * last_level_cache_bytes()
    if read_bytes == 0 or read_bytes >= cache_bytes:
        return [module]
    total_bytes = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    number = min(ceil(cache_bytes / read_bytes), _MAX_COPIES, max(1, _MAX_COPIED_BYTES // total_bytes))
    return [module, *(deepcopy(module) for _ in range(number))]


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give a module's buffers back the values that they had, whatever its forward writes to them within the scope."""
    saved = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.detach().copy_(saved[name])


def describe_module_environment(module: nn.Module) -> Environment:
    """Return the environment that a plain module is measured in: this process on the device of the module.

    Raises:
        MeasurementError: Dooly cannot time that device.
    """
    import torch

    tensors = [*module.parameters(), *module.buffers()]
    device_kind = tensors[0].device.type if tensors else "cpu"
    if device_kind != "cpu":
        raise MeasurementError(f"device {device_kind!r}: plain modules can be timed on 'cpu' only; move the module there")
    return Environment(
        device=cpu_name(),
        device_kind=device_kind,
        driver=platform.release(),
        torch_version=torch.__version__,
        engine="torch",
        engine_version=torch.__version__,
        # Which attention kernel and which element types an operation has stands in its graph, and so in its signature.
        attention_backend="as traced",
        dtype=f"as traced, float32 products {torch.get_float32_matmul_precision()}",
        kv_cache_dtype="none",
        block_size=1,
        execution_mode="eager",
        quantization=None,
        num_threads=torch.get_num_threads(),
    )
