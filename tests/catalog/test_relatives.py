"""What a store knows of other models' operations: of which families, how many of them, and without reading more than is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dbstore import Environment, JsonObject, Record, Store
from dooly.catalog import MOST_OTHERS, measured_most, related_operations
from dooly.tracing import TracedModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dooly.tracing import TracedOperation

    Make = Callable[..., TracedOperation]

ENVIRONMENT = Environment(
    device="made up",
    device_kind="cpu",
    driver="1",
    torch_version="2",
    engine="vllm",
    engine_version="0",
    attention_backend="CPU_ATTN",
    dtype="bfloat16",
    kv_cache_dtype="auto",
    block_size=16,
    execution_mode="eager",
    quantization=None,
    num_threads=2,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store with an environment."""
    found = Store.open(tmp_path / "db", "a")
    found.write_document("environments", ENVIRONMENT.digest, ENVIRONMENT.to_json())
    return found


def _member(operation: Make, number: int, family: str = "f") -> TracedOperation:
    name = f"w{number}{family}"
    return operation(f"{number:031x}{family}", name, family=family * 32, family_numbers=(float(number),))


def _measure(store: Store, operation: TracedOperation, count: int) -> None:
    points = [JsonObject({"d0": t + 1}) for t in range(count)]
    store.write(*(Record(operation.signature, ENVIRONMENT.digest, point, np.array([1000] * 3)) for point in points))


def test_other_models_members_of_the_same_families_are_related(operation: Make, store: Store) -> None:
    """Not a model's own operations, nor those of strange families, nor those of another environment."""
    own, other, strange = _member(operation, 1), _member(operation, 2), _member(operation, 3, "e")
    document = {"traced": TracedModel("other", {}, (own, other, strange)).to_json()}
    store.write_document("traces", f"other-{ENVIRONMENT.digest}", document)
    store.write_document("traces", f"other-{'0' * 32}", {"traced": TracedModel("x", {}, (_member(operation, 4),)).to_json()})
    assert [op.signature for op in related_operations([own], store, ENVIRONMENT.digest)] == [other.signature]
    assert related_operations([operation("1" * 32, "none")], store, ENVIRONMENT.digest) == []


@pytest.mark.parametrize(
    ("counts", "kept"),
    [((3, 5, 4), [5, 4, 3]), ((2,) * 20, [2] * MOST_OTHERS), ((300, 200, 250), [300, 250]), ((900, 5), [900]), ((), [])],
    ids=["few", "many", "large", "one too large", "none"],
)
def test_those_measured_most_tell(operation: Make, store: Store, counts: tuple[int, ...], kept: list[int]) -> None:
    """The members with most points, up to sixteen and up to as many points as can be learnt from in seconds; always one."""
    members = [_member(operation, 10 + number) for number in range(len(counts))]
    for member, count in zip(members, counts, strict=True):
        _measure(store, member, count)
    unmeasured = _member(operation, 99)
    known = measured_most([*members, unmeasured], store, ENVIRONMENT.digest)
    assert [len(one.latency_ns) for one in known] == kept
