"""Profile models into a store: trace, plan what is missing, measure it on a reduced engine, keep the traced model beside it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

from dooly.catalog import (
    check_kernels,
    describe_environment,
    operations_here,
    parameter_bytes,
    read_traced,
    record_counts,
    told_apart,
    write_described,
    write_traced,
)
from dooly.device import cache_bytes, cache_room_bytes
from dooly.dtypes import item_bytes
from dooly.engines import ModelSource, ServingConfig, start_engine
from dooly.errors import InvalidInputError, spell
from dooly.measure._adaptive import TARGET_ERROR
from dooly.measure._adaptive_plan import AdaptivePlan
from dooly.measure._given import check_run, check_share
from dooly.measure._result import ProfileResult, result_of
from dooly.measure._tasks import FixedPlan, run_tasks
from dooly.measure.engine._adaptive import adaptive_plan, seconds_a_record
from dooly.measure.engine._profiler import Profiler, Task, plan_tasks
from dooly.tracing import layer_counts, layer_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterator

    from dbstore import JsonObject, Store
    from dooly.engines import Engine
    from dooly.measure._tasks import Plan
    from dooly.tracing import TracedModel


def profile(  # noqa: PLR0913 - one argument an option of `dooly profile`
    model: ModelSource,
    store: Store,
    serving: ServingConfig | None = None,
    *,
    budget_s: float | None = None,
    target_error: float = TARGET_ERROR,
    share: tuple[int, int] = (0, 1),
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    on_error: Callable[[float], None] = lambda _error: None,
) -> ProfileResult:
    """Measure the operations of a model that a store lacks.

    Every point is written as soon as it is measured, so a killed run loses the point in flight only, and a second run measures
    what is left.

    Args:
        model: The model to profile.
        store: An open, writable store.
        serving: The engine's limits, which bound the batches.
        budget_s: Seconds to measure at most; None measures everything, and 0 starts no engine.
        target_error: Median relative error at which the sweep of an operation ends: what is expected where nobody measured, by
            how far measured points lie from what the others tell of each; 0 measures every point of the grid.
        share: Which of how many equal parts of the operations to measure, counted from 0, where several workers fill one store.
        dry_run: Plan only: measure and write nothing.
        progress: Called with (points done, points planned) after each batch.
        on_error: Called before with the relative error that is expected of a step.

    Raises:
        UnsupportedModelError: The engine does not know the model.
        EngineError: The engine does not start.
        InvalidInputError: `model` is no model; `store` is no open store, or open for reading and this is no dry run; `budget_s`
            is no number of seconds, `target_error` no relative error, or `share` no part of equal ones; several ranks are asked
            for, or kernels of mixtures of experts that the engine does not choose by itself.

    Examples:
        >>> model, store = dooly.find_model("smollm2-135m"), dooly.Store.open("db", "a")
        >>> planned = dooly.profile(model, store, dooly.ServingConfig(max_model_len=256, max_num_seqs=4), dry_run=True)
        >>> planned.num_measured, planned.num_left > 0
        (0, True)
    """
    if not isinstance(model, ModelSource):
        raise InvalidInputError(f"dooly.profile: model: {spell(model)} is no model; give what dooly.find_model returns")
    check_run("profile", store, budget_s, target_error, progress, writes=not dry_run)
    check_share("profile", share)
    serving = serving or ServingConfig()
    serving.require_one_rank()
    check_kernels(serving)
    known = read_traced(store, model, serving)
    traced = known[0][0] if known else told_apart(operations_here(model, serving), store)
    plans = [_plan(found, share, serving, store, digest, target_error) for found, digest in known]
    plans = plans or [_plan(traced, share, serving, store, None, target_error)]
    plan = max(plans, key=lambda plan: plan.num_left())
    num_points = _num_points(traced, serving)
    if dry_run or budget_s == 0 or plan.num_left() == 0:
        result = result_of(traced, num_points, plan)
        if not dry_run or not isinstance(plan, AdaptivePlan):
            return result
        forecast, each_s = plan.forecast(), seconds_a_record(store, {digest for _, digest in known})
        forecast_s = None if each_s is None else each_s * forecast.num_wanted
        return replace(result, num_left=forecast.num_wanted, forecast=forecast, forecast_s=forecast_s)
    with _reduced_engine(model, traced, serving) as engine:
        environment = describe_environment(engine, serving)
        write_described(store, environment, traced)
        write_traced(store, model, serving, traced, environment)
        plan = _plan(traced, share, serving, store, environment.digest, target_error)
        profiler = Profiler(engine, traced.operations, store, environment)

        def told(done: int, total: int) -> None:
            if isinstance(plan, AdaptivePlan) and plan.error is not None:
                on_error(plan.error)
            progress(done, total)

        records, seconds = run_tasks(profiler, plan, budget_s, told)
        return result_of(traced, num_points, plan, records, seconds)


def _num_points(traced: TracedModel, serving: ServingConfig) -> int:
    """Return how many points the whole grid has, in all passes."""
    return sum(len(task.missing) for task in plan_tasks(traced.operations, serving, lambda _signature, _point: 0))


def _part(traced: TracedModel, share: tuple[int, int]) -> TracedModel:
    """Return a model with a share of its operations: every so many of the signatures, so that each is in one share."""
    number, count = share
    mine = set(list(dict.fromkeys(op.signature for op in traced.operations))[number::count])
    return replace(traced, operations=tuple(op for op in traced.operations if op.signature in mine))


def _plan(  # noqa: PLR0913, PLR0917 - what to measure, within what, what is known, and how far to go
    traced: TracedModel,
    share: tuple[int, int],
    serving: ServingConfig,
    store: Store,
    environment: str | None,
    target_error: float,
) -> Plan[Task]:
    """Return what proposes the tasks of a share that a store lacks in an environment; None stands for a new one."""
    part = _part(traced, share)
    if target_error > 0:
        return adaptive_plan(part.operations, serving, store, environment, target_error, parts=traced.operations)
    return FixedPlan(_missing(part, serving, store, environment))


def _missing(traced: TracedModel, serving: ServingConfig, store: Store, environment: str | None) -> tuple[Task, ...]:
    """Return the tasks that the store lacks in an environment; all where the environment is new."""
    known: dict[str, Counter[JsonObject]] = {}

    def count(signature: str, point: JsonObject) -> int:
        if environment is None:
            return 0
        if signature not in known:
            known[signature] = record_counts(store, signature, environment)
        return known[signature][point]

    return plan_tasks(traced.operations, serving, count)


@contextmanager
def _reduced_engine(model: ModelSource, traced: TracedModel, serving: ServingConfig) -> Iterator[Engine]:
    """Run the engine with as few layers as show every kind and keep weights cold, and with a KV cache that fits the batches.

    Where that is more than the device has room for, batches that need it are infeasible there.
    """
    num_layers = _num_layers(traced)
    heads = [op.attributes for op in traced.operations if op.attributes.get("num_kv_heads") is not None]
    values = max((h["num_kv_heads"] * (h["head_size"] + (h["head_size_v"] or 0)) for h in heads), default=1)
    token_bytes = values * item_bytes(serving.dtype)
    tokens = serving.max_num_seqs * (serving.max_model_len + 256)
    room = cache_room_bytes(str(traced.environment["platform"]))
    reduced = replace(serving, kv_cache_memory_bytes=max(min(tokens * token_bytes * num_layers, room), 64 << 20))
    engine = start_engine(model, reduced, num_layers)
    try:
        yield engine
    finally:
        engine.close()


_LEAST_LAYERS = {"cpu": 1, "cuda": 4}
"""On a GPU the first layer waits for the host, which from then on runs ahead: several later ones are wanted."""


def _num_layers(traced: TracedModel) -> int:
    layers: dict[str, int] = {}
    for operation in traced.operations:
        for module, _count in operation.placements:
            if (layer := layer_of(module)) is not None:
                layers[layer] = layers.get(layer, 0) + parameter_bytes(operation)
    total = sum(layer_counts(traced.operations).values())
    shown = max(int(path.rpartition(".")[2]) for path in layers) + 1
    platform_ = str(traced.environment["platform"])
    # The piece that runs up to the first layer's attention holds a part of a layer; those behind it hold one each.
    whole = [size for path, size in layers.items() if path != next(iter(layers)) or not _is_compiled(traced)]
    cold = ceil(2 * cache_bytes(platform_) / min(whole or layers.values()))
    return min(total, max(shown, cold, _LEAST_LAYERS[platform_]))


def _is_compiled(traced: TracedModel) -> bool:
    return any(operation.is_piece for operation in traced.operations)
