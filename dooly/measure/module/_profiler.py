"""Profile a traced plain module: run its forward operation by operation at the request dimensions that the store lacks."""

from __future__ import annotations

import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING, Any

from dooly.catalog import parameter_bytes
from dooly.device import last_level_cache_bytes
from dooly.errors import DoolyError, MeasurementError
from dooly.measure._tasks import infeasible_record, record_of
from dooly.measure.timers import MAX_ROUNDS, MIN_ROUNDS, CpuTimer, Watch, is_out_of_memory, is_tight
from dooly.predict import drop_fits_of_other_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from dbstore import Environment, JsonObject, Record, Store
    from dooly.tracing import Traced
    from passes.graph import CapturedGraph
    from passes.origins import Origins
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
        import torch

        from dooly.measure.module._subgraph import split_graph

        self._watch = Watch(CpuTimer(), torch.device("cpu"))
        self._traced = traced
        self._name = type(traced.module).__name__
        self._captured = traced.captured
        self._origins = analysis.origins
        self._autocast = traced.most_general.autocast
        self._device_kind = environment.device_kind
        self._pieces = split_graph(self._captured, [analysed.operation for analysed in analysis.operations])
        self._keys_at = keys_at
        self._store = store
        self._environment = environment.digest
        self._copies = cycle(module_copies(traced))
        self._written: set[str] = set()

    def measure(self, task: ModuleTask) -> tuple[Record, ...]:
        """Measure one task, write its records, and return them."""
        begin = time.perf_counter()
        self._watch.begin()
        try:
            samples = self._rounds(task)
        except Exception as error:
            if isinstance(error, DoolyError) or is_out_of_memory(error):
                raise
            raise MeasurementError(
                f"{self._name}: forward fails at {_spell(task.sizes)}: {_reason(error)}; leave those sizes out"
            ) from error
        watched = self._watch.facts()
        wall_s = (time.perf_counter() - begin) / len(task.missing)
        facts = {"timing": "perf_counter", "pass": task.number, "wall_s": wall_s, **watched}
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
        """Fold the records that were written, an operation a group, so that reading them is fast; drop fits of other code."""
        for signature in sorted(self._written):
            self._store.compact(signature, self._environment)
        drop_fits_of_other_code(self._store)

    def _write(self, records: list[Record]) -> tuple[Record, ...]:
        self._store.write(*records)
        self._written.update(record.signature for record in records)
        return tuple(records)

    def _rounds(self, task: ModuleTask) -> dict[ModuleKey, list[int]]:
        import torch

        from dooly.measure.module._arguments import arguments_at, graph_values, symbol_values, tensor_values
        from dooly.measure.module._subgraph import run_pieces

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
                with self._autocast_as(self._autocast):
                    timed(whole, partial(next(self._copies), *bound.args, **bound.kwargs))
                tensors = tensor_values(self._captured, next(self._copies), bound)
                with self._autocast_as({}):  # the graph holds its casts
                    run_pieces(self._pieces, {**constants, **tensors}, lambda place, call: timed(keys[place], call))
                if round_ == 0:  # warms up
                    samples.clear()
                tight = all(is_tight(samples[key]) for key in task.missing) if samples else False
                if round_ + 1 >= MIN_ROUNDS and (tight or time.perf_counter_ns() - begin > _BUDGET_NS):
                    break
        return samples

    def _autocast_as(self, dtypes: Mapping[str, torch.dtype]) -> torch.autocast:
        import torch

        return torch.autocast(self._device_kind, dtypes.get(self._device_kind), enabled=self._device_kind in dtypes)


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _spell(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def refuse_other_branches(
    name: str, captured: CapturedGraph, origins: Origins, combinations: Iterable[Mapping[str, int]]
) -> None:
    """Refuse sizes at which a module would run other code than was traced, before anything is measured.

    Raises:
        MeasurementError: There are such; the message names the condition and what to do.
    """
    from sympy import false
    from sympy.core.relational import Ne, Relational

    from dooly.measure.module._arguments import symbol_values

    for sizes in combinations:
        symbols = symbol_values(captured, origins, sizes)
        for guard in captured.guards:
            if guard.xreplace(dict(symbols)) != false:
                continue
            traced = origins.concrete(guard)
            ones = {dim: size for dim, size in sizes.items() if size == 1 and dim in map(str, traced.free_symbols)}
            if ones and isinstance(traced, Ne):
                raise MeasurementError(
                    f"{name}: runs other code at {_spell(ones)} than it was traced at, as a size of 1 is a case of its own to "
                    f"PyTorch (broadcasting); leave {_spell(ones)} out"
                )
            rule = f"{traced.lhs} {traced.rel_op} {traced.rhs}" if isinstance(traced, Relational) else traced
            raise MeasurementError(
                f"{name}: its trace holds for {rule} only, so not at {_spell(sizes)}; trace with such sizes, or leave them out"
            )


def module_copies(traced: Traced) -> list[nn.Module]:
    """Return a traced module, and as many copies of it as keep its parameters out of the last-level cache when all take turns.

    A module of no more than a few kilobytes gets no more copies than 256, and copies take 1 GiB at most.
    """
    module = traced.module
    read_bytes = sum(parameter_bytes(op) * op.count for op in traced.traced.operations)
    cache_bytes = 2 * last_level_cache_bytes()
    if read_bytes == 0 or read_bytes >= cache_bytes:
        return [module]
    # Tensors that are plain attributes are read as well, and listed nowhere.
    total_bytes = max(read_bytes, sum(t.nbytes for t in (*module.parameters(), *module.buffers())))
    number = min(ceil(cache_bytes / read_bytes), _MAX_COPIES, max(1, _MAX_COPIED_BYTES // total_bytes))
    try:
        return [module, *(deepcopy(module) for _ in range(number))]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise MeasurementError(
            f"{type(module).__name__}: copy.deepcopy of it fails: {_reason(error)}; measuring with cold parameters needs copies, "
            "so give its class a __deepcopy__ that works"
        ) from error


@contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Give a module back its buffers with their values, and its modes, whatever changes them within the scope."""
    buffers = {child: dict(child._buffers) for child in module.modules()}  # noqa: SLF001 - forward may put another tensor there
    values = {buffer: buffer.detach().clone() for buffer in module.buffers()}
    modes = {child: child.training for child in module.modules()}
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
            child._buffers.update(buffers[child])  # noqa: SLF001 - as above
        for buffer, value in values.items():
            buffer.detach().copy_(value)


def set_modes(module: nn.Module, training: Mapping[str, bool]) -> None:
    """Put a module and those within it into training mode or out of it, by path; one that is not told stays as it is."""
    for path, child in module.named_modules():
        child.training = training.get(path, child.training)
