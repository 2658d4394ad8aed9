"""Links that are stated: how they are spelt, and what collectives take over them."""

from __future__ import annotations

import math

import pytest

from dooly.batch import Batch
from dooly.catalog import operation_table
from dooly.engines import ServingConfig, find_model
from dooly.errors import InvalidInputError
from dooly.predict import BatchArrays, Interconnect, OperationWork
from dooly.predict._interconnect import LinkedCollective
from dooly.predict._kinds import Collective, kind_of

BATCH = BatchArrays.of([Batch((100,), (0,), 1)])
HIDDEN = 4096


def _all_reduce(ranks: int) -> tuple[Collective, OperationWork]:
    """Return the all-reduce behind a layer of Llama 3.1 8B, over 100 tokens 819,200 bytes."""
    table = operation_table(find_model("llama-3.1-8b"), ServingConfig(tensor_parallel_size=ranks))
    operation = next(op for op in table.operations if op.name == "all_reduce")
    kind = kind_of(operation)
    assert isinstance(kind, Collective)
    return kind, OperationWork(operation)


@pytest.mark.parametrize(
    ("ranks", "expected_us"),
    [(2, 20 + 819_200 / 16e3), (4, 6 * (20 + 819_200 / 4 / 16e3)), (8, 14 * (20 + 819_200 / 8 / 16e3))],
)
def test_two_ranks_exchange_and_more_pass_around(ranks: int, expected_us: float) -> None:
    """Two send each other all they have; p ranks reduce and gather in 2(p-1) messages of a p-th part."""
    kind, work = _all_reduce(ranks)
    assert kind == Collective("all_reduce", ranks)
    link = Interconnect.parse("bandwidth=16,latency=20")
    (latency_ns,) = LinkedCollective(kind, link).latency_ns(work, BATCH)
    assert latency_ns == pytest.approx(1e3 * expected_us)


def test_a_gather_goes_one_way() -> None:
    """Gathering takes half the messages of an all-reduce, each of a part of the result."""
    _, work = _all_reduce(4)
    link = Interconnect(16e9, 20_000)
    (latency_ns,) = LinkedCollective(Collective("all_gather", 4), link).latency_ns(work, BATCH)
    assert latency_ns == pytest.approx(3 * (20_000 + 819_200 / 4 / 16))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16",
        "bandwidth=16",
        "bandwidth=x,latency=2",
        "bandwidth=0,latency=2",
        "bandwidth=1,latency=2,hops=3",
        "bandwidth=1,latency=2,bandwidth=9",
        "bandwidth=1,latency=-2",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    """The message shows the right one."""
    with pytest.raises(InvalidInputError, match=r"--interconnect: .* is not as bandwidth=16,latency=20"):
        Interconnect.parse(text)


@pytest.mark.parametrize(("bytes_per_s", "latency_ns"), [(-1.0, 5.0), (math.inf, 5.0), (1e9, -1.0), (1e9, math.nan)])
def test_a_link_has_a_bandwidth_and_a_latency(bytes_per_s: float, latency_ns: float) -> None:
    """Made by hand, it is checked as its text is."""
    with pytest.raises(InvalidInputError, match="bytes_per_s must be above 0 and latency_ns at least 0"):
        Interconnect(bytes_per_s, latency_ns)
