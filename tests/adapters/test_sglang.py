"""SGLang's simulator: seconds for batches of its scheduler's attributes."""

from __future__ import annotations

import doctest
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import dooly
from dooly.adapters import sglang
from dooly.adapters.sglang import InferTimePredictor
from dooly.batch import Batch

if TYPE_CHECKING:
    from dooly.predict import LatencyModel


def _batch(*sizes: tuple[int, int]) -> Any:  # noqa: ANN401 - whatever has the attributes
    return SimpleNamespace(reqs=[SimpleNamespace(extend_length=new, past_kv_length=past) for new, past in sizes])


def test_a_batch_takes_what_its_step_takes(latency: LatencyModel) -> None:
    """Extended tokens are computed, past ones are in the cache; an idle batch takes nothing."""
    predictor = InferTimePredictor(latency)
    step = latency.step(Batch((1, 60), (200, 0)))
    assert predictor.predict_infer_time(_batch((1, 200), (60, 0))) == pytest.approx(step.seconds, rel=1e-4)
    assert predictor.predict_infer_time(_batch()) == 0


def test_hisim_calls_what_a_request_computes_its_input(latency: LatencyModel) -> None:
    """HiSim, from which SGLang's simulator came, has `input_length` where that has `extend_length`."""
    requests = [SimpleNamespace(input_length=new, past_kv_length=past) for new, past in ((1, 200), (60, 0))]
    batch: Any = SimpleNamespace(reqs=requests)
    predictor = InferTimePredictor(latency)
    assert predictor.predict_infer_time(batch) == predictor.predict_infer_time(_batch((1, 200), (60, 0)))


def test_what_cannot_be_priced_is_negative(latency: LatencyModel) -> None:
    """Beyond what was measured the simulator is told so, as its contract has it."""
    assert InferTimePredictor(latency).predict_infer_time(_batch((100_000, 0))) < 0


def test_a_profile_tells_what_the_seconds_rest_on(latency: LatencyModel) -> None:
    """The simulator asks for a predictor's own metrics when it writes a profile, and resets them after: shares that sum to 1."""
    predictor = InferTimePredictor(latency)
    predictor.predict_infer_time(_batch((1, 100)))
    predictor.reset_metrics()
    shares = predictor.get_metrics()
    assert set(shares) == {"dooly_measured", "dooly_family", "dooly_estimated"}
    assert sum(shares.values()) == pytest.approx(1)


def test_the_example_runs() -> None:
    """What the docstring shows is what Python answers."""
    globs = {"dooly": dooly, "InferTimePredictor": InferTimePredictor}
    (found,) = (test for test in doctest.DocTestFinder().find(InferTimePredictor, globs=globs) if test.examples)
    assert sglang.__doc__
    assert not doctest.DocTestRunner().run(found).failed
