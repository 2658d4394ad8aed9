"""What a predictor says that seconds are from is of the steps that ran."""

from __future__ import annotations

import numpy as np
import pytest

from dooly.engines import find_model
from dooly.latency import HostTimes
from dooly.predict import LatencyModel, default_serving, load_latency_model
from dooly.simulation import Request, SchedulerConfig, StepLog, Workload, parse_workload, simulate
from dooly.speculation import SpeculativeConfig


@pytest.fixture
def latency() -> LatencyModel:
    """A model on a device whose measurements ship, of which no step was priced."""
    source = find_model("llama-3.1-8b")
    return load_latency_model(None, source, default_serving(source, "h200", max_model_len=4096), hardware="h200")


def device_ns(log: StepLog) -> int:
    """Return how long the device was at steps."""
    return sum(int(np.sum(np.subtract(run.ends_ns, run.starts_ns))) for run in log.runs)


@pytest.mark.parametrize("ahead", [False, True])
def test_steps_that_an_arrival_cuts_off_count_to_no_source(latency: LatencyModel, ahead: bool) -> None:  # noqa: FBT001
    """Runs of decodes are priced beyond the next arrival; what is accounted for is what the device did."""
    log = StepLog()
    config = SchedulerConfig(4096, 20_000, async_scheduling=ahead)
    simulate(parse_workload("poisson:rate=40,requests=40,prompt=100,output=60"), latency, config, HostTimes(), steps=log)
    assert sum(latency.priced_ns.values()) == pytest.approx(device_ns(log), rel=1e-6)


def test_a_drafters_seconds_are_estimated(latency: LatencyModel) -> None:
    """The model's steps count to their sources, the drafter's passes as what they are told to take."""
    log = StepLog()
    plain = SchedulerConfig(4096, 20_000)
    drafts = SpeculativeConfig("eagle", 5, (0.8, 0.6, 0.4, 0.3, 0.2), draft_cost=0.05)
    config = SchedulerConfig(4096, 20_000, speculative=drafts)
    workload = Workload((Request(0, 0, 500, 200),), "by hand")
    simulate(workload, latency, plain)
    assert latency.priced_ns["estimated"] == 0
    latency.priced_ns = dict.fromkeys(latency.priced_ns, 0.0)
    simulate(workload, latency, config, HostTimes(), steps=log)
    assert sum(latency.priced_ns.values()) == pytest.approx(device_ns(log), rel=1e-6)
    # Five passes of a twentieth, the first over all that the model verifies, are a fifth of all at most.
    assert 0.15 < latency.provenance["estimated"] < 0.2
