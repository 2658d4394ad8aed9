"""The page of a store: what is known, how well, how steadily it was measured and what that cost."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dbstore import Environment, Record, Store
from dooly.catalog import engine_operations
from dooly.report import write_store
from dooly.report._store_facts import collect
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation

ENVIRONMENT = Environment(
    device="a device",
    device_kind="cpu",
    driver="1",
    torch_version="1",
    engine="vllm",
    engine_version="1",
    attention_backend="CPU_ATTN",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=2,
)


@pytest.fixture
def store(tmp_path: Path, operation: Callable[..., TracedOperation]) -> Store:
    """A store of two operations, one in two models; a pass was disturbed, and one point could not be measured."""
    environment = ENVIRONMENT
    store = Store.open(tmp_path / "db", "a")
    store.write_document("environments", environment.digest, environment.to_json())
    up = operation("up", "model.layers.0.up", request_flops="2048*num_tokens", request_bytes="1024*num_tokens + 9")
    down = operation("down", "model.layers.0.down", module_class="Down")
    for name, operations in (("one", (up, down)), ("two", (up,))):
        traced = TracedModel(name, {"engine": "vllm"}, operations)
        traced = replace(traced, operations=(*operations, *engine_operations(traced, ())))
        document: dict[str, Any] = {"model": name, "config": name, "environment": environment.digest, "traced": traced.to_json()}
        store.write_document("traces", name, document)
    for number, drift in enumerate((0.0, 0.0, 0.8)):
        facts = {"pass": number, "wall_s": 2.0, "measured_s": 1e9 + number, "drift": drift, "spoiled": drift > 0.1}
        for size in (1, 8, 64):
            samples = np.array([1000 + 10 * size * (1 + number)] * 3)
            store.write(Record("up", environment.digest, {"d0": size}, samples, facts))
    store.write(Record("down", environment.digest, {"d0": 1}, np.empty(0, np.int64), infeasible="out of memory"))
    return store


def test_facts_of_a_store(store: Store) -> None:
    """Points, what could not be measured, what was disturbed, seconds and drift are those of the records, each counted once."""
    facts = collect(store)
    found = {(known.model, known.name): known for known in facts.known}
    one, down, two = (found[key] for key in (("one", "up"), ("one", "down"), ("two", "up")))
    assert (one.num_points, one.num_spoiled, one.reach, one.measuring_s) == (3, 3, "64", 18.0)
    assert (two.num_points, two.measuring_s) == (3, 0.0)
    assert (down.num_points, down.num_infeasible, down.reach) == (1, 1, "")
    assert facts.drift == {
        "a device": [(f"2001-09-09 01:46:4{n}.000", d) for n, d in ((0, 0.0),) * 3 + ((1, 0.0),) * 3 + ((2, 0.8),) * 3]
    }
    assert {number: len(values) for number, values in facts.passes.items()} == {0: 3, 1: 3, 2: 3}
    assert facts.passes[0] == [0.0, 0.0, 0.0]
    assert max(facts.passes[2]) == pytest.approx((1000 + 1920) / 1640 - 1)


def test_the_page_needs_no_network(store: Store, tmp_path: Path) -> None:
    """One file with charts and tables, and nothing to fetch; what cannot be told is said."""
    write_store(store, tmp_path / "store.html")
    page = (tmp_path / "store.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    for heading in ("Drift", "Passes", "Cost", "Families", "Operations"):
        assert f"<h2>{heading}</h2>" in page
    assert "10 records of 2 operations" in page
    assert "no errors of one" in page


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    """A store without records is told so, and no chart is drawn."""
    write_store(Store.open(tmp_path / "db", "a"), tmp_path / "store.html")
    page = (tmp_path / "store.html").read_text()
    assert "0 records of 0 operations" in page
    assert "<h2>Cost</h2>" not in page
