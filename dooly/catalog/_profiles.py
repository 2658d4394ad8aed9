"""Which profile of a model, or of a plain module, a store holds: its trace, and the environment that it was measured in."""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dbstore import Environment
from dooly.catalog._environment import CUDA_GRAPHS, on_this_machine
from dooly.catalog._trace_version import trace_version
from dooly.device import cpu_name
from dooly.engines import ServingConfig, declared_quantization
from dooly.errors import InvalidInputError, MissingOperationError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dbstore import Store
    from dooly.engines import ModelSource


def profiled_model(
    store: Store, model: ModelSource, serving: ServingConfig, wanted: Environment | None
) -> tuple[TracedModel, Environment]:
    """Return the trace of a model that fits the serving settings, with its environment; this machine's if there are several."""
    found = _fitting(store, model, serving, wanted)
    if not found:
        raise _nothing_found(store, model, serving)
    if wanted is not None and wanted not in found:
        # A GPU's engine in CUDA graphs runs the kernels that were measured in the eager one.
        like = replace(wanted, execution_mode="eager", model_runner=None)
        same = [e for e in found if e.device_kind == "cuda" and replace(e, model_runner=None) == like]
        if wanted.execution_mode == CUDA_GRAPHS and len(same) == 1:
            return TracedModel.from_json(found[same[0]]["traced"]), same[0]
        nearest = min(found, key=lambda environment: len(_differing([wanted, environment])))
        raise MissingOperationError(
            f"{model.name}: not profiled in the environment asked for, only with other {_differences([wanted, nearest])}; "
            f"run `dooly profile {model.name} --db PATH` in the one asked for, which is named first"
        )
    candidates = on_this_machine(list(found)) if wanted is None else [wanted]
    if len(candidates) > 1:
        raise InvalidInputError(
            f"{model.name}: profiled in several environments ({_differences(candidates)}); choose one with --attention-backend, "
            "or keep them in stores of their own"
        )
    return TracedModel.from_json(found[candidates[0]]["traced"]), candidates[0]


def _fitting(store: Store, model: ModelSource, serving: ServingConfig, wanted: Environment | None) -> dict[Environment, Any]:
    """Return the latest document of a trace that fits the serving settings, for each environment that has one."""
    found: dict[Environment, Any] = {}
    for name in store.documents("traces"):
        document: Any = store.read_document("traces", name)
        if document["config"] != model.digest:
            continue
        environment = Environment.from_json(store.read_document("environments", document["environment"]))
        if wanted is None and not _executes_so(environment, serving):
            continue
        if _suits(environment, document["traced"]["environment"], serving) and _is_quantised_so(environment, model, serving):
            found[environment] = max(found.get(environment, document), document, key=_recency)
    return found


def _nothing_found(store: Store, model: ModelSource, serving: ServingConfig) -> MissingOperationError:
    """Return the error that names the command by which a store would hold a fitting profile.

    Raises:
        InvalidInputError: No command would: several ranks cannot be measured here.
    """
    if serving.tensor_parallel_size > 1 and _is_imported(store):
        return MissingOperationError(
            f"{model.name}: the store holds nothing of this model over {serving.tensor_parallel_size} ranks; import it with "
            f"`dooly db import --tensor-parallel-size {serving.tensor_parallel_size}`"
        )
    serving.require_one_rank()
    backend = f" --attention-backend {serving.attention_backend}" if serving.attention_backend else ""
    quantised = "" if serving.quantization is None else f" --quantization {serving.quantization}"
    cache = "" if serving.kv_cache_dtype == "auto" else f" --kv-cache-dtype {serving.kv_cache_dtype}"
    compiled = " --no-enforce-eager" if serving.enforce_eager is False else ""
    engine = "" if serving.engine == ServingConfig().engine else f" --engine {serving.engine}"
    flags = f"--dtype {serving.dtype}{quantised}{cache}{backend}{compiled}{engine}"
    others = " and ".join(sorted(_dtypes(store, model) - {serving.dtype}))
    instead = f"it holds one in {others}: ask for that with --dtype, or " if others else ""
    return MissingOperationError(
        f"{model.name}: the store holds no profile of this model with {flags}; {instead}run `dooly profile {model.name} {flags}` "
        "on it"
    )


def _dtypes(store: Store, model: ModelSource) -> set[str]:
    """Return the element types in which a store holds a model."""
    documents: list[Any] = [store.read_document("traces", name) for name in store.documents("traces")]
    digests = {document["environment"] for document in documents if document["config"] == model.digest}
    return {str(store.read_document("environments", digest)["dtype"]) for digest in digests}


def _recency(document: Mapping[str, Any]) -> tuple[bool, float, int]:
    """Return what orders a model's traces: this code's own first, then the newest; those of before there were times by number."""
    version = document.get("version", 0)
    return version == trace_version(), document.get("written_s", 0.0), version if isinstance(version, int) else 0


def _suits(environment: Environment, layout: Any, serving: ServingConfig) -> bool:  # noqa: ANN401 - JSON
    """Tell whether a model traced in a layout, and measured in an environment, is what serving settings ask for."""
    ranks = ("tensor_parallel_size", "pipeline_parallel_size")
    return (
        (environment.source is not None or environment.engine == serving.engine)
        and environment.dtype == serving.dtype
        and serving.attention_backend in {None, environment.attention_backend}
        and all(layout.get(name, 1) == getattr(serving, name) for name in ranks)
        and (serving.tensor_parallel_size == 1 or layout["enable_expert_parallel"] == serving.enable_expert_parallel)
    )


def _executes_so(environment: Environment, serving: ServingConfig) -> bool:
    """Tell whether an engine executes as serving settings ask for: on a CPU it is eager unless it is asked to compile."""
    if environment.device_kind != "cpu" or environment.source is not None:
        return True
    return environment.execution_mode == ("compiled" if serving.enforce_eager is False else "eager")


def _is_quantised_so(environment: Environment, model: ModelSource, serving: ServingConfig) -> bool:
    """Tell whether weights and KV cache were of the types asked for; without any asked for, of those that the model declares."""
    if serving.quantization is None and serving.kv_cache_dtype == "auto" and declared_quantization(model) is not None:
        return True
    asked = {serving.quantization, None} if environment.source is not None else {serving.quantization}
    return environment.quantization in asked and environment.kv_cache_dtype == serving.kv_cache_dtype


def _is_imported(store: Store) -> bool:
    return any("source" in store.read_document("environments", digest) for digest in store.documents("environments"))


def _differing(environments: Sequence[Environment]) -> dict[str, list[Any]]:
    """Return the fields in which environments differ, with the values."""
    documents = [environment.to_json() for environment in environments]
    names = dict.fromkeys(name for document in documents for name in document)
    fields = {name: [document.get(name) for document in documents] for name in names}
    return {name: values for name, values in fields.items() if len(set(values)) > 1}


def _differences(environments: Sequence[Environment]) -> str:
    """Return the fields in which environments differ, with the values, as text."""
    return ", ".join(f"{name} ({' or '.join(map(str, values))})" for name, values in _differing(environments).items())


def module_environment(store: Store, table: TracedModel) -> Environment:
    """Return the environment that holds the whole module: this machine's if there are several."""
    documents: list[Any] = [store.read_document("environments", digest) for digest in store.documents("environments")]
    torch_only = [Environment.from_json(document) for document in documents if document.get("engine") == "torch"]
    whole = table.operations[-1].signature
    keys = set(store.keys())
    found = [e for e in torch_only if (whole, e.digest) in keys]
    here = [e for e in found if (e.device, e.driver) == (cpu_name(), platform.release())]
    candidates = here or found
    if not candidates:
        lacking = [op for op in table.operations if not any((op.signature, e.digest) in keys for e in torch_only)]
        names = ", ".join(dict.fromkeys(op.module or op.name for op in lacking or table.operations[-1:]))
        raise MissingOperationError(
            f"{table.model}: the store lacks {names}; call dooly.profile_module(traced, store, request_dims=...) on it"
        )
    if len(candidates) > 1:
        names = ", ".join(f"{e.device}, torch {e.torch_version}, {e.num_threads} threads" for e in candidates)
        raise InvalidInputError(f"{table.model}: measured in several environments ({names}); give one of them as environment")
    return candidates[0]
