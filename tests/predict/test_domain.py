"""Steps beyond what was measured, and how many KV blocks a memory has room for."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.errors import OutOfDomainError, UnsupportedModelError
from dooly.predict import LatencyModel, load_latency_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from dbstore import Environment, Store
    from dooly.engines import ModelSource, ServingConfig
    from dooly.tracing import TracedOperation


@pytest.mark.parametrize(
    "batch",
    [Batch((400,), (0,), 1), Batch((1,) * 20, (50,) * 20), Batch((1,), (5_000,))],
    ids=["tokens", "requests", "context"],
)
def test_outside_what_was_measured(latency: LatencyModel, batch: Batch) -> None:
    """A batch beyond the measured tokens, requests or context is refused with what to do, or flagged where asked."""
    for predict in (latency.step, latency.step_ns):
        with pytest.raises(OutOfDomainError, match=r"were measured; profile made-up with a larger --max") as caught:
            predict(batch)
        assert "\n" not in str(caught.value)
    step = latency.step(batch, extrapolate=True)
    assert step.extrapolated
    assert np.isfinite(step.seconds)
    assert step.seconds > latency.step(Batch((1,), (16,))).seconds


@pytest.fixture(scope="module")
def small_memory(
    make_store: Callable[..., Store],
    environment: Environment,
    model: ModelSource,
    serving: ServingConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> LatencyModel:
    """The small model on a device whose cache holds 1,000 tokens, so that no larger batch could be measured."""
    path = tmp_path_factory.mktemp("small-memory") / "db"
    store = make_store(path, environment, where=lambda b: b.num_tokens + sum(b.num_computed_tokens) <= 1000)
    return load_latency_model(store, model, serving)


@pytest.mark.parametrize(
    ("batch", "extrapolated"),
    [
        (Batch((1,) * 8, (100,) * 8), False),
        (Batch((1,) * 2, (445,) * 2), False),
        (Batch((1,) * 8, (400,) * 8), True),
        (Batch((1,) * 7 + (64,), (400,) * 7 + (0,), 1), True),
        (Batch((250,), (250,), 1), False),
        (Batch((128, 128), (380, 380), 2), True),
        (Batch((250,), (0,), 1), False),
    ],
    ids=["decodes", "long decodes", "many long decodes", "among a prefill", "a chunk behind a context", "two", "a prompt"],
)
def test_attention_beyond_what_it_was_measured_to_is_flagged(
    small_memory: LatencyModel, batch: Batch, *, extrapolated: bool
) -> None:
    """Within the limits of steps, contexts may still add up to more than any that was measured: priced, and said so."""
    assert small_memory.step(batch).extrapolated == extrapolated
    before, total = small_memory.extrapolated_ns, sum(small_memory.priced_ns.values())
    assert small_memory.step_ns(batch) == pytest.approx(1e9 * small_memory.step(batch).seconds, abs=1)
    priced = sum(small_memory.priced_ns.values()) - total
    assert small_memory.extrapolated_ns - before == pytest.approx(priced if extrapolated else 0)
    assert small_memory.extrapolated_share is not None
    assert 0 <= small_memory.extrapolated_share <= 1


def test_an_extrapolation_follows_the_laws(latency: LatencyModel, law_ns: Callable[[Batch], float]) -> None:
    """At four times the measured tokens the prediction is still near: it extrapolates by work done."""
    batch = Batch((256,) * 4, (0,) * 4, 4)
    assert latency.step(batch, extrapolate=True).seconds == pytest.approx(law_ns(batch) / 1e9, rel=0.15)


def test_a_run_that_leaves_the_domain_is_refused(latency: LatencyModel) -> None:
    """A decode run whose last steps are too long is refused as a whole."""
    with pytest.raises(OutOfDomainError):
        latency.decode_run_ns(np.array([latency.domain.context - 5]), 10)


@pytest.mark.parametrize(("dtype", "item_bytes"), [("bfloat16", 2), ("float32", 4)])
def test_kv_blocks_by_hand(latency: LatencyModel, serving: ServingConfig, dtype: str, item_bytes: int) -> None:
    """A block holds 16 tokens' keys and values of 2 heads of 32 in 3 layers; the cache holds so many as fit whole."""
    block_bytes = 16 * 2 * (32 + 32) * 3 * item_bytes
    assert latency.block_size == 16
    for number in (1, 7, 1000):
        exact = replace(serving, dtype=dtype, kv_cache_memory_bytes=number * block_bytes)
        assert latency.num_kv_blocks(exact) == number
        assert latency.num_kv_blocks(replace(exact, kv_cache_memory_bytes=(number + 1) * block_bytes - 1)) == number


def test_windows_take_blocks_of_their_own(
    latency: LatencyModel, serving: ServingConfig, operation: Callable[..., TracedOperation]
) -> None:
    """Five layers with a window beside three without: groups of three, so that a block is as large as before."""
    window = {"num_kv_heads": 2, "head_size": 32, "head_size_v": 32, "kv_cache_dtype": "auto", "sliding_window": 128}
    other = operation("o", "model.layers.1.mixer", stateful=True, count=5, attributes=window)
    model = copy.copy(latency)
    model.traced = replace(latency.traced, operations=(*latency.traced.operations, other))
    kinds = [group.kind.value for group in model.kv_cache_layout(serving).groups]
    assert kinds == ["full_attention", "sliding_window", "sliding_window"]
    assert model.num_kv_blocks(serving) == latency.num_kv_blocks(serving)


def test_a_cache_that_is_not_modelled_is_refused(
    latency: LatencyModel, serving: ServingConfig, operation: Callable[..., TracedOperation]
) -> None:
    """No number of blocks would be right; a given one stands."""
    attributes = {"kind": "IndexerCache", "num_kv_heads": None}
    other = operation("o", "model.layers.1.mixer", stateful=True, count=5, attributes=attributes)
    model = copy.copy(latency)
    model.traced = replace(latency.traced, operations=(*latency.traced.operations, other))
    with pytest.raises(UnsupportedModelError, match=r"^made-up: model\.layers\.1\.mixer and 4 like it keeps a cache of its own"):
        model.num_kv_blocks(serving)
    assert model.num_kv_blocks(replace(serving, num_gpu_blocks_override=77)) == 77
