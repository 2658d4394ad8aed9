"""The documents that lead from a model to its operations and their records: traced models, environments, operations."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.catalog._environment import installed_version
from dooly.catalog._trace_version import trace_version
from dooly.device import cpu_name, visible_gpus
from dooly.engines import engine_packages, engine_variables, how_to_install
from dooly.errors import EngineError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dbstore import Environment, Store
    from dooly.engines import ModelSource, ServingConfig
    from dooly.tracing import TracedOperation

NO_MODEL = "none"
"""Stands for a configuration's digest where operations are no model's."""


def read_traced(store: Store, model: ModelSource, serving: ServingConfig) -> tuple[tuple[TracedModel, str], ...]:
    """Return the traced model that this machine's profiles left in a store, with the digest of each environment they ran in.

    There are several where something changed that shows only once the engine runs.
    """
    prefix = f"{_trace_digest(model, serving)}-"
    documents: list[Any] = [store.read_document("traces", name) for name in store.documents("traces") if name.startswith(prefix)]
    return tuple((TracedModel.from_json(document["traced"]), document["environment"]) for document in documents)


def write_traced(store: Store, model: ModelSource, serving: ServingConfig, traced: TracedModel, environment: Environment) -> None:
    """Write the document that leads from a model to its operations and to the environment of their records."""
    write_document_of(store, _trace_digest(model, serving), (model.name, model.digest), traced, environment)


def write_imported(
    store: Store, model: ModelSource, traced: TracedModel, others: tuple[TracedOperation, ...], environment: Environment
) -> None:
    """Write the same document for records of another tool, which no engine and no state of this machine stand behind.

    Args:
        store: The store.
        model: The model.
        traced: Its operations.
        others: Operations of no model that have records too; they get a document of their own, which no model's name finds.
        environment: What the records were measured in.
    """
    made = {"engine": environment.engine, "engine_version": environment.engine_version}
    beside = TracedModel(f"other operations of {environment.source}", made, others)
    for table, config in ((traced, model.digest), *([(beside, NO_MODEL)] if others else [])):
        signatures = [operation.signature for operation in table.operations]
        found = [trace_version(), config, dict(table.environment), signatures]
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]
        write_document_of(store, digest, (table.model, config), table, environment)


def write_document_of(store: Store, digest: str, model: tuple[str, str], traced: TracedModel, environment: Environment) -> None:
    """Write a trace document of a model, by its name and its configuration's digest."""
    name, config = model
    document = {
        "model": name,
        "config": config,
        "environment": environment.digest,
        "version": trace_version(),
        "written_s": time.time(),
        "traced": traced.to_json(),
    }
    place = f"{digest}-{environment.digest}"
    if place not in store.documents("traces"):
        store.write_document("traces", place, document)


def write_described(store: Store, environment: Environment, traced: TracedModel) -> None:
    """Write the documents that records point to: the environment, and what each signature stands for."""
    store.write_document("environments", environment.digest, environment.to_json())
    known = set(store.documents("operations"))
    for operation in traced.operations:
        if operation.signature not in known:
            known.add(operation.signature)
            store.write_document("operations", operation.signature, operation.canonical)


def _trace_digest(model: ModelSource, serving: ServingConfig) -> str:
    """Return what names a traced model in a store: model, engine settings that shape it, and the machine as it is now.

    It holds all that an environment is made of, as far as that shows without the engine.
    """
    packages = engine_packages(serving.engine)
    versions = {package: installed_version(package) for package in ("torch", *packages)}
    if not any(versions[package] for package in packages):
        raise EngineError(f"engine {serving.engine}: not installed; install it with {how_to_install(serving.engine)}")
    settings = [serving.dtype, serving.tensor_parallel_size, serving.attention_backend]
    if serving.quantization is not None or serving.kv_cache_dtype != "auto":
        settings += [serving.quantization, serving.kv_cache_dtype]
    if serving.enforce_eager is False:
        settings.append("compiled")
    cores = len(os.sched_getaffinity(0))
    # What starts workers may name the threads that there are without it.
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)), **engine_variables(serving.engine)}
    gpus = [(gpu.name, gpu.driver, gpu.limits) for gpu in visible_gpus()]
    machine = [cpu_name(), platform.release(), cores, variables, gpus]
    found = [trace_version(), model.digest, settings, versions, _torch_build(), machine]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


def _torch_build() -> str | None:
    """Return what torch was built from and for, CUDA included, without loading it."""
    spec = find_spec("torch")
    return Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else None
