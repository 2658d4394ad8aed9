"""Where a model's table of operations comes from if no profile holds it: the tables that ship, the user's cache, or a new trace.

A table depends on the configuration, the layout and element types. Where weights are quantised it depends on the device as well:
which kernels an engine has there decides how weights are laid out and what activations are made into.
"""

from __future__ import annotations

import hashlib
import json
import logging
import lzma
import os
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from dooly.catalog._environment import installed_version
from dooly.catalog._table import trace_operations
from dooly.catalog._trace_version import trace_version
from dooly.engines import TARGETS, device_target, engine_packages
from dooly.errors import EngineError, MissingOperationError, UnsupportedModelError, pip_install
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from dooly.engines import ModelSource, ServingConfig, Target

_LOGGER = logging.getLogger("dooly.catalog")
_SHIPPED_ENGINE = "vllm"
"""Whose tables ship."""


def operation_table(model: ModelSource, serving: ServingConfig, hardware: str | None = None) -> TracedModel:
    """Return the operations of one step of a model.

    Args:
        model: The model.
        serving: How it is served.
        hardware: The GPU that it is traced as for, where no table ships; None, or a name that no trace can be made for, is the
            device at hand.

    Raises:
        MissingOperationError: The table does not ship, is in no cache, and there is no engine to trace the model with.
        EngineError: The engine that is there fails, or its process is killed.
        UnsupportedModelError: The engine does not know the architecture, or cannot divide it so.
    """
    target = TARGETS.get(hardware or "")
    serving = replace(serving, enforce_eager=None)  # what ships of a device tells operations that no compiler joined
    if (table := _read(shipped_file(model, serving, target), model)) is not None:
        return table
    heads = model.text_config.get("num_attention_heads")
    if isinstance(heads, int) and heads % serving.tensor_parallel_size:  # known without an engine, and no engine would help
        raise UnsupportedModelError(
            f"{model.name}: {heads} attention heads cannot be divided over {serving.tensor_parallel_size} ranks; choose "
            "--tensor-parallel-size accordingly"
        )
    try:
        return _traced(model, serving, None if target is None else target.name)
    except (EngineError, ModuleNotFoundError) as error:
        if isinstance(error, EngineError) and _has_engine(serving):
            raise  # it is there, and says itself what it lacks
        ranks = "1 rank" if serving.tensor_parallel_size == 1 else f"{serving.tensor_parallel_size} tensor-parallel ranks"
        layout = f"{ranks}, {serving.quantization or serving.dtype}"
        raise MissingOperationError(
            f"{model.name}: its table of operations for {layout} does not ship with Dooly, and tracing it needs the engine "
            f"({error}); install it with {pip_install('cpu')}{_what_ships(model, serving, target)}"
        ) from error


def _what_ships(model: ModelSource, serving: ServingConfig, target: Target | None) -> str:
    """Return which flags of element types would have a table, as the end of a line; nothing where none has."""
    ways: tuple[tuple[str, str | None, str], ...] = (
        ("neither --quantization nor --kv-cache-dtype", None, "auto"),
        ("--quantization fp8", "fp8", "auto"),
        ("--quantization fp8 --kv-cache-dtype fp8", "fp8", "fp8"),
    )
    found = [
        way
        for way, weights, cache in ways
        if _read(shipped_file(model, replace(serving, quantization=weights, kv_cache_dtype=cache), target), model) is not None
    ]
    return f", or give what ships: {'; '.join(found)}" if found else ""


def operations_here(model: ModelSource, serving: ServingConfig) -> TracedModel:
    """Return the operations of one step of a model on the device at hand.

    On a GPU that tables are made for they are those of its table, so that its records lie under the signatures that ship.

    Raises:
        MissingOperationError: As `operation_table` raises.
        EngineError: The engine that is there fails, or its process is killed.
        UnsupportedModelError: The engine does not know the architecture, or cannot divide it so.
    """
    import torch

    has_tables = serving.engine == _SHIPPED_ENGINE and torch.cuda.is_available()
    target = device_target(torch.cuda.get_device_name()) if has_tables else None
    if target is None:
        return trace_operations(model, serving)
    table = operation_table(model, serving, target.name)
    return replace(table, environment={**table.environment, "device": target.device, "platform": "cuda"})


def _traced(model: ModelSource, serving: ServingConfig, hardware: str | None) -> TracedModel:
    """Return the table in the user's cache, or trace the model and keep its table there."""
    cached = _cached_file(model, serving, hardware)
    if (table := _read(cached, model)) is not None:
        return table
    if _has_engine(serving):
        _LOGGER.warning("%s: tracing it with the engine, once for these settings: half a minute or more", model.name)
    table = trace_operations(model, serving, hardware)
    with suppress(OSError):  # a cache that cannot be written costs the next trace, not this answer
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_table(table, model, cached)
    return table


def _has_engine(serving: ServingConfig) -> bool:
    return any(installed_version(package) for package in engine_packages(serving.engine))


def write_table(table: TracedModel, model: ModelSource, file: Path) -> None:
    """Write a table with the configuration it is of; it appears whole or not at all."""
    document = json.dumps({"config": model.digest, "traced": table.to_json()}, separators=(",", ":"))
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")  # others may write the same table
    aside.write_bytes(lzma.compress(document.encode()))
    aside.replace(file)


def shipped_file(model: ModelSource, serving: ServingConfig, target: Target | None = None) -> Traversable:
    """Return where a table lies that ships with Dooly, if it does: where something is quantised, one of a compute capability."""
    plain = serving.dtype == "bfloat16" and serving.pipeline_parallel_size == 1 and not serving.enable_expert_parallel
    plain &= serving.moe_backend == "auto" and serving.engine == _SHIPPED_ENGINE
    parts = [model.name, f"tp{serving.tensor_parallel_size}"]
    if serving.quantization is not None or serving.kv_cache_dtype != "auto":
        plain = plain and target is not None
        capability = "" if target is None else "sm{}{}".format(*target.capability)
        parts += [capability, f"weights-{serving.quantization}", f"cache-{serving.kv_cache_dtype}"]
    name = f"{'.'.join(parts)}.json.xz" if plain else "none"
    return resources.files("dooly") / "data" / "tables" / name


def _read(file: Traversable, model: ModelSource) -> TracedModel | None:
    """Return the table in a file; None where there is no file, or it is of another configuration, or was cut off."""
    try:
        document: Any = json.loads(lzma.decompress(file.read_bytes()))
        return TracedModel.from_json(document["traced"]) if document["config"] == model.digest else None
    except (OSError, lzma.LZMAError, ValueError, LookupError, TypeError):
        return None


def _cached_file(model: ModelSource, serving: ServingConfig, hardware: str | None) -> Path:
    from platformdirs import user_cache_path

    layout = [serving.tensor_parallel_size, serving.pipeline_parallel_size, serving.enable_expert_parallel]
    versions = [installed_version(package) for package in ("torch", *engine_packages(serving.engine), "transformers")]
    settings = [serving.dtype, serving.attention_backend, serving.max_model_len, serving.quantization, serving.kv_cache_dtype]
    settings += [serving.moe_backend, hardware]
    found = [trace_version(), model.digest, layout, settings, versions]
    name = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:32]
    return user_cache_path("dooly") / "tables" / f"{name}.json.xz"
