"""A small model made by hand, and a store in which every operation follows a known law."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Environment, Record, Store
from dooly.catalog import LAYER, STEP, engine_operations, measurement_batches, point_of
from dooly.engines import ModelSource, ServingConfig
from dooly.predict import LatencyModel, load_latency_model
from dooly.tracing import TracedModel, TracedOperation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dooly.batch import Batch

    Laws = dict[str, Callable[[Batch], float]]

SERVING = ServingConfig(max_model_len=512, max_num_batched_tokens=256, max_num_seqs=8)
ATTENTION = {"num_heads": 4, "num_kv_heads": 2, "head_size": 32, "head_size_v": 32, "kv_cache_dtype": "auto"}
ENVIRONMENT = Environment(
    device="made up",
    device_kind="cpu",
    driver="1",
    torch_version="2.13.0",
    engine="vllm",
    engine_version="0.32.0",
    attention_backend="CPU_ATTN",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=2,
)
PATHS = {
    "embed": "model.embed",
    "up": "model.layers.0.up",
    "down": "model.layers.0.down",
    "attention": "model.layers.0.attn",
    "head": "head",
    "sampler": "sampler",
}


def _operation(name: str, **fields: Any) -> TracedOperation:  # noqa: ANN401 - the fields' own types
    count = 3 if ".layers." in PATHS[name] else 1
    values: dict[str, Any] = {
        "signature": f"{name}-signature",
        "name": name,
        "module": PATHS[name],
        "module_class": "Linear",
        "stage": "decoder",
        "stateful": False,
        "count": count,
        "placements": ((PATHS[name], count),),
        "inputs": (),
        "outputs": (),
        "flops": "2*hidden*num_tokens",
        "bytes": "hidden*num_tokens",
        "request_dims": ("num_tokens",),
        "request_flops": "2048*num_tokens",
        "request_bytes": "1024*num_tokens + 65536",
        "attributes": {},
        "canonical": {"scheme": 1, "nodes": [name], "edges": []},
    }
    return TracedOperation(**(values | fields))


def _per_request(name: str, stage: str) -> TracedOperation:
    dims: dict[str, Any] = {"request_dims": ("num_reqs",), "request_flops": "4096*num_reqs", "request_bytes": "2048*num_reqs"}
    return _operation(name, stage=stage, **dims)


def _traced(more: Sequence[TracedOperation] = ()) -> TracedModel:
    attention = _operation(
        "attention",
        stateful=True,
        attributes=ATTENTION,
        request_dims=("num_tokens", "kv_tokens", "query_key_pairs"),
        request_flops="512*query_key_pairs",
        request_bytes="256*kv_tokens + 512*num_tokens",
    )
    modules = (
        _operation("embed"),
        _operation("up"),
        attention,
        _operation("down"),
        _per_request("head", "logits"),
        _per_request("sampler", "sample"),
        *more,
    )
    traced = TracedModel("made-up", {"engine": "vllm"}, modules)
    return replace(traced, operations=(*modules, *engine_operations(traced, ())))


def _attention_ns(batch: Batch) -> float:
    pairs = zip(batch.num_new_tokens, batch.num_computed_tokens, strict=True)
    return 4_000 + sum(20 * (n + c) if n == 1 else 900 + 2 * (n * c + n * (n + 1) / 2) for n, c in pairs)


LAWS: Laws = {
    "embed": lambda b: 2_000 + 10 * b.num_tokens,
    "up": lambda b: 20_000 + 300 * b.num_tokens,
    "down": lambda b: 15_000 + 200 * b.num_tokens,
    "attention": _attention_ns,
    "head": lambda b: 30_000 + 5_000 * b.num_reqs,
    "sampler": lambda b: 10_000 + 1_000 * b.num_reqs,
    STEP: lambda b: 400_000 + 20_000 * b.num_reqs + 50 * b.num_tokens + 10_000 * b.num_new_requests,
}
"""Nanoseconds of one run of each operation, sums of what the model's base is made of."""
BENT_LAWS: Laws = LAWS | {
    "up": lambda b: 20_000 + max(90_000, 1_000 * b.num_tokens),
    "down": lambda b: 15_000 + max(60_000, 800 * b.num_tokens),
}
"""Laws with rooflines' bends, which no such sum follows."""


def _run_ns(name: str, batch: Batch, laws: Laws) -> float:
    """Return what one run of an operation takes; a layer takes 8,000 beyond its operations."""
    return 8_000 + sum(laws[part](batch) for part in ("up", "down", "attention")) if name == LAYER else laws[name](batch)


def _step_ns(batch: Batch, laws: Laws = LAWS) -> float:
    return 3 * _run_ns(LAYER, batch, laws) + sum(laws[name](batch) for name in ("embed", "head", "sampler", STEP))


def _fill(  # noqa: PLR0913, PLR0917 - what a store is made of
    store: Store,
    model: ModelSource,
    environment: Environment,
    without: str | None,
    limits: ServingConfig,
    laws: Laws,
    more: Sequence[TracedOperation],
    where: Callable[[Batch], bool],
) -> None:
    traced = _traced(more)
    store.write_document("environments", environment.digest, environment.to_json())
    document = {"model": model.name, "config": model.digest, "environment": environment.digest, "traced": traced.to_json()}
    store.write_document("traces", f"trace-{environment.digest}", document)
    records = {}
    for operation in (op for op in traced.operations if op.name != without):
        for batch in filter(where, measurement_batches(limits)):
            point = point_of(operation, batch)
            samples = np.array([round(_run_ns(operation.name, batch, laws))] * 3)
            records[operation.signature, point] = Record(operation.signature, environment.digest, point, samples)
    store.write(*records.values())


@pytest.fixture(scope="session")
def environment() -> Environment:
    """The environment of the records."""
    return ENVIRONMENT


@pytest.fixture(scope="session")
def serving() -> ServingConfig:
    """The limits that the grid of the records was made for."""
    return SERVING


@pytest.fixture(scope="session")
def law_ns() -> Callable[[Batch], float]:
    """What a step over a batch takes by the laws."""
    return _step_ns


@pytest.fixture(scope="session")
def laws() -> Laws:
    """Laws of the operations, by name."""
    return LAWS


@pytest.fixture(scope="session")
def bent_laws() -> Laws:
    """Laws of the operations that bend within the measured range."""
    return BENT_LAWS


@pytest.fixture(scope="session")
def bent_law_ns() -> Callable[[Batch], float]:
    """What a step over a batch takes by the bent laws."""
    return partial(_step_ns, laws=BENT_LAWS)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """The small model's configuration."""
    folder = tmp_path_factory.mktemp("made-up")
    (folder / "config.json").write_text(json.dumps({"architectures": ["MadeUp"]}))
    return ModelSource("made-up", folder)


@pytest.fixture(scope="session")
def make_store(model: ModelSource) -> Callable[..., Store]:
    """Return a function that fills a store with the records of the small model, in each environment given.

    It takes the name of an operation to leave out, the limits of the grid, laws in place of the usual ones, more operations, and
    which batches could be measured.
    """

    def make(  # noqa: PLR0913 - as above
        path: Path,
        *environments: Environment,
        without: str | None = None,
        limits: ServingConfig = SERVING,
        laws: Laws = LAWS,
        more: Sequence[TracedOperation] = (),
        where: Callable[[Batch], bool] = lambda _: True,
    ) -> Store:
        store = Store.open(path, "a")
        for environment in environments:
            _fill(store, model, environment, without, limits, laws, more, where)
        return store

    return make


@pytest.fixture(scope="session")
def store(make_store: Callable[..., Store], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with every record of the small model."""
    return make_store(tmp_path_factory.mktemp("store") / "db", ENVIRONMENT)


@pytest.fixture(scope="session")
def latency(store: Store, model: ModelSource, serving: ServingConfig) -> LatencyModel:
    """The latency model of the small model."""
    return load_latency_model(store, model, serving)
