"""A latency model's price sheet says what its operations do, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.batch import Batch
from dooly.engines import find_model
from dooly.predict import BatchArrays, LatencyModel, default_serving, load_latency_model


def model_of(hardware: str, model: str) -> LatencyModel:
    """Return the latency model of a listed model on a listed device."""
    source = find_model(model)
    return load_latency_model(None, source, default_serving(source, hardware, max_model_len=8192), hardware=hardware)


def batches(seed: int, number: int) -> list[Batch]:
    """Draw batches of decodes, of prompts and their chunks, and of both."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(number):
        num_decodes, num_prefills = rng.choice([0, 1, 9, 60, 200]), rng.choice([0, 1, 2, 5])
        num_prefills += not num_decodes + num_prefills
        new = (*(1,) * num_decodes, *rng.integers(1, 1000, num_prefills).tolist())
        drawn.append(Batch(new, tuple(rng.choice([0, 100, 3000], len(new)).tolist())))
    return drawn


@pytest.mark.parametrize(("hardware", "model"), [("h200", "llama-3.1-8b"), ("rtxpro6000", "llama-3.1-8b")])
def test_a_sheet_prices_steps_as_their_operations_do(hardware: str, model: str) -> None:
    """By families of decodes and prefills, or by a regressor over batches of any kind; totals by source agree as well."""
    latency = model_of(hardware, model)
    assert latency.price_sheet() is not None
    drawn = batches(0, 150)
    steps = [latency.step(batch) for batch in drawn]
    assert [latency.step_ns(batch) for batch in drawn] == [round(1e9 * step.seconds) for step in steps]
    totals = {source: sum(1e9 * step.seconds * step.provenance[source] for step in steps) for source in latency.priced_ns}
    assert latency.priced_ns == pytest.approx(totals)
    together = latency.steps_ns(BatchArrays.of(drawn))
    assert together.tolist() == [latency.step_ns(batch) for batch in drawn]


def test_decodes_that_are_looked_up_are_those_that_are_worked_out() -> None:
    """A run of steps over the same requests asks its trees the same questions again and again."""
    latency = model_of("h200", "llama-3.1-8b")
    contexts = np.array([10, 700, 3000, 3001])
    alone = [latency.step_ns(Batch((1,) * 4, tuple((contexts + step).tolist()), 0)) for step in range(300)]
    assert latency.decode_run_ns(contexts, 300).tolist() == alone


@pytest.mark.parametrize("hardware", ["h200", "rtxpro6000"])
def test_steps_that_verify_drafts_are_priced_as_their_operations_do(hardware: str) -> None:
    """They sample more tokens than they hold requests, and some attention reads a request's keys once for all of its queries."""
    latency = model_of(hardware, "llama-3.1-8b")
    new, computed = (4,) * 16 + (500,), (1000,) * 16 + (0,)
    batch = Batch(new, computed, 1, (3,) * 16 + (0,))
    assert latency.step_ns(batch) == round(1e9 * latency.step(batch).seconds)
    assert latency.step_ns(batch) != latency.step_ns(Batch(new, computed, 1))


def test_windows_are_priced_operation_by_operation() -> None:
    """Half of gemma-2's layers see a window, which no sum of whole contexts tells: there is no sheet, and steps are priced."""
    latency = model_of("h200", "gemma-2-9b")
    assert latency.price_sheet() is None
    assert latency.step_ns(Batch((1, 500), (5000, 0))) > 0
