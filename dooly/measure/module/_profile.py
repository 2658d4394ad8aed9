"""`dooly.profile_module`: measure the operations of a traced plain module that a store lacks."""

from __future__ import annotations

from functools import cache
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from dooly.catalog import (
    PASSES,
    describe_module_environment,
    given_sizes,
    key_of,
    point_at,
    record_counts,
    told_apart,
    with_whole_module,
    write_described,
)
from dooly.errors import InvalidInputError, spell
from dooly.measure._adaptive_plan import AdaptivePlan
from dooly.measure._given import check_run
from dooly.measure._passes import Passes
from dooly.measure._result import result_of
from dooly.measure._tasks import FixedPlan, run_tasks
from dooly.measure.module._profiler import ModuleProfiler, ModuleTask, refuse_other_branches, set_modes, state_kept

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dbstore import JsonObject, Record, Store
    from dooly.catalog import Key
    from dooly.measure._result import ProfileResult
    from dooly.measure._tasks import Plan
    from dooly.measure.module._profiler import ModuleKey
    from dooly.tracing import Traced, TracedModel, TracedOperation
    from passes.pipeline import Analysis


def profile_module(  # noqa: PLR0913 - what to measure, and how far to go
    traced: Traced,
    store: Store,
    *,
    request_dims: Mapping[str, Iterable[int]],
    budget_s: float | None = None,
    target_error: float = 0.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ProfileResult:
    """Measure the operations of a traced module that a store lacks, at every combination of the given request dimensions.

    Operations run as they do in the module's forward: one after the other, on each other's results, with parameters as cold as
    the last-level cache allows. Elements of the arguments are drawn from those of the call that traced the module. The whole
    forward is measured beside them. Points are written as soon as they are measured, so a killed run loses the one in flight, and
    a second run measures what is left; what another module left in the store is not measured again.

    Args:
        traced: The module, after a call with example arguments.
        store: An open, writable store.
        request_dims: Sizes to measure of each request dimension, by its name in `traced.traced`.
        budget_s: Seconds to measure at most; None measures everything, and 0 nothing.
        target_error: Median relative error at which the sweep of an operation ends: what is expected where nobody measured, by
            how far measured points lie from what the others tell of each; 0 measures every combination.
        progress: Called with (points done, points planned) after each combination.

    Raises:
        TraceError: The module has not run yet.
        InvalidInputError: `request_dims` lacks a request dimension, names an unknown one, or gives no size of at least 1; or
            another argument is not what it should be, such as a module that `dooly.trace` did not make, or a path for a store.
        MeasurementError: The module's device cannot be timed, it cannot be copied, or its forward fails at a combination or
            goes another way than the traced one there.

    Examples:
        >>> import torch
        >>> traced = dooly.trace(torch.nn.Linear(64, 32), request_dims={"input": ("num_tokens",)})
        >>> _ = traced(torch.ones(4, 64))
        >>> result = dooly.profile_module(traced, dooly.Store.open("db", "a"), request_dims={"num_tokens": (1, 8)})
        >>> result.num_left
        0
    """
    from dooly.tracing import Traced
    from passes.pipeline import analyse

    if not isinstance(traced, Traced):
        raise InvalidInputError(
            f"dooly.profile_module: traced: {spell(traced)} is no traced module; give dooly.trace(module), called once"
        )
    check_run("profile_module", store, budget_s, target_error, progress)
    table = with_whole_module(told_apart(traced.traced, store))
    sizes_by_name = given_sizes(table, request_dims)
    combinations = [dict(zip(sizes_by_name, sizes, strict=True)) for sizes in product(*sizes_by_name.values())]
    analysis = analyse(traced.captured)
    keys_at = _keys(traced.traced, table, analysis)
    environment = describe_module_environment(traced.module)
    tasks = plan_module_tasks(combinations, keys_at, _counter(store, environment.digest))
    plan: Plan[ModuleTask] = FixedPlan(tasks)
    if target_error > 0:
        plan = _adaptive_plan(table.operations, combinations, store, environment.digest, target_error)
    records: tuple[Record, ...] = ()
    seconds = 0.0
    if budget_s != 0 and plan.num_left():
        refuse_other_branches(table.model, traced.captured, analysis.origins, combinations)
        with state_kept(traced.module):
            set_modes(traced.module, traced.most_general.training)  # copies are made in them
            profiler = ModuleProfiler(traced, analysis, keys_at, store, environment)
            write_described(store, environment, table)
            records, seconds = run_tasks(profiler, plan, budget_s, progress)
    num_points = _num_points(plan_module_tasks(combinations, keys_at, lambda _signature, _point: 0))
    return result_of(table, num_points, plan, records, seconds)


def _keys(plain: TracedModel, table: TracedModel, analysis: Analysis) -> Callable[[Mapping[str, int]], list[ModuleKey]]:
    """Return what tells the keys that a forward of given sizes measures: each operation, and last the whole module.

    Args:
        plain: The module's table as traced.
        table: The same as the store has it, told apart from other modules, and with the whole module last.
        analysis: The module's operations.
    """
    *_, whole = table.operations
    rows = zip(plain.operations, table.operations[:-1], strict=True)
    signatures = {(old.signature, module): new.signature for old, new in rows for module, _ in old.placements}

    def keys_at(sizes: Mapping[str, int]) -> list[ModuleKey]:
        found = [(signatures[op.signature, op.operation.module], point_at(op.request_dims, sizes)) for op in analysis.operations]
        return [*found, (whole.signature, point_at(whole.request_dims, sizes))]

    return keys_at


def _adaptive_plan(
    operations: Sequence[TracedOperation],
    combinations: Sequence[Mapping[str, int]],
    store: Store,
    environment: str,
    target_error: float,
) -> AdaptivePlan[ModuleTask]:
    """Return the plan of adaptive sweeps over combinations of sizes; the smallest and the largest come first."""
    own = {key_of(operation): operation for operation in operations}
    places = [{key: point_at(op.request_dims, sizes) for key, op in own.items()} for sizes in combinations]
    products = np.array([[float(prod(sizes.values())), *map(float, sizes.values())] for sizes in combinations])
    points = {key: {place[key] for place in places} for key in own}
    passes = Passes.of_store(store, environment, points, target_error)
    ends = dict.fromkeys((int(np.argmin(products[:, 0])), int(np.argmax(products[:, 0]))))

    def make(number: int, place: int, keys: Sequence[Key]) -> ModuleTask:
        return ModuleTask(number, combinations[place], tuple((key[0], places[place][key]) for key in keys))

    return AdaptivePlan(own, operations, places, products, tuple(ends), passes, (), target_error, make)


def plan_module_tasks(
    combinations: Sequence[Mapping[str, int]],
    keys_at: Callable[[Mapping[str, int]], Sequence[ModuleKey]],
    count: Callable[[str, JsonObject], int],
) -> tuple[ModuleTask, ...]:
    """Return the combinations of sizes to run, pass by pass, each with what no earlier combination and no record covers.

    Args:
        combinations: Sizes of the request dimensions.
        keys_at: What a forward of given sizes measures.
        count: How many records the store has of (signature, point).
    """
    tasks = []
    for number in range(PASSES):
        planned: set[ModuleKey] = set()
        for sizes in combinations:
            missing = [key for key in dict.fromkeys(keys_at(sizes)) if key not in planned and count(*key) <= number]
            planned.update(missing)
            if missing:
                tasks.append(ModuleTask(number, sizes, tuple(missing)))
    return tuple(tasks)


def _num_points(tasks: Sequence[ModuleTask]) -> int:
    return sum(len(task.missing) for task in tasks)


def _counter(store: Store, environment: str) -> Callable[[str, JsonObject], int]:
    """Return what counts the records of a store by signature and point; each signature is read once."""

    @cache
    def counts(signature: str) -> Counter[JsonObject]:
        return record_counts(store, signature, environment)

    return lambda signature, point: counts(signature)[point]
