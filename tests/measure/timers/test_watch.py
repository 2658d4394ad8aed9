"""Watching a device: what slows it down before or after a measurement is found, whatever it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dooly.measure.timers import MOST_DRIFT, Call, CpuTimer, Watch, _watch, disturbances, is_spoiled
from dooly.measure.timers._contention import Cores

if TYPE_CHECKING:
    from collections.abc import Sequence

CPU = torch.device("cpu")


class SlowedTimer(CpuTimer):
    """A timer by whose clock the calibration kernels take what is asked for."""

    def __init__(self) -> None:
        self.compute_ns, self.memory_ns = 1000, 2000

    def prepare(self, calls: Sequence[Call]) -> SlowedTimer:
        """Take the kernels, and run them once to see that they do."""
        self.timings = tuple("perf_counter" for _ in calls)
        for call in calls:
            call.run()
        return self

    def time_ns(self) -> list[int]:
        """Return what is asked for."""
        return [self.compute_ns, self.memory_ns]


@pytest.fixture
def timer() -> SlowedTimer:
    """The timer of the watch."""
    return SlowedTimer()


@pytest.fixture
def watch(timer: SlowedTimer) -> Watch:
    """A watch that knows how fast the device is at best."""
    return Watch(timer, CPU)


def test_a_steady_device_has_no_drift(watch: Watch) -> None:
    """The order counts on, the time is the clock's, and nothing is slower than at best."""
    found = []
    for _ in range(3):
        watch.begin()
        found.append(watch.facts())
    assert [facts["order"] for facts in found] == [1, 2, 3]
    assert found[0]["measured_s"] <= found[1]["measured_s"] <= found[2]["measured_s"]
    assert [(facts["drift"], facts["products_ns"]) for facts in found] == [(0.0, [1000.0, 2000.0])] * 3


def test_idle_cores_are_noted_beside_a_gpu(timer: SlowedTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that each measure a GPU of a machine keep a core busy for one another, and spoil nothing while others are idle."""
    monkeypatch.setattr(_watch, "_kernels", lambda _device: [Call(("k", ("", "")), lambda: None)] * 2)
    monkeypatch.setattr(_watch, "Contention", lambda: SimpleNamespace(begin=lambda: None, cores=lambda: Cores(7.0, 8.0)))
    found = {kind: Watch(timer, torch.device(kind)).facts() for kind in ("cpu", "cuda")}
    assert found["cuda"]["idle_cores"] == 8.0
    assert "idle_cores" not in found["cpu"]
    assert {kind: is_spoiled(facts) for kind, facts in found.items()} == {"cpu": True, "cuda": False}


@pytest.mark.parametrize("kernel", ["compute_ns", "memory_ns"])
def test_what_is_slower_on_both_sides_spoils_a_measurement(watch: Watch, timer: SlowedTimer, kernel: str) -> None:
    """Whether the device computes or reads weights more slowly; the smaller of the two slowdowns counts."""
    quick = getattr(timer, kernel)
    setattr(timer, kernel, 5 * quick)
    watch.begin()
    setattr(timer, kernel, 3 * quick)
    facts = watch.facts()
    assert facts["drift"] == pytest.approx(2.0)
    assert is_spoiled(facts | {"others_cores": 0.0})
    setattr(timer, kernel, quick)
    watch.begin()
    assert watch.facts()["drift"] == 0.0


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_slow_on_one_side_alone_counts_as_the_machines_own(watch: Watch, timer: SlowedTimer, when: str) -> None:
    """Moments of that kind come by themselves, to an engine that serves as well."""
    timer.compute_ns = 3000 if when == "before" else 1000
    watch.begin()
    timer.compute_ns = 1000 if when == "before" else 3000
    assert watch.facts()["drift"] == 0.0


def test_the_best_is_held_against_what_was_before_too(watch: Watch, timer: SlowedTimer) -> None:
    """A device that was slow at first, as one that sleeps, sets no measure: once it is quicker, that is the measure."""
    timer.compute_ns = 500
    watch.begin()
    watch.facts()
    timer.compute_ns = 1000
    watch.begin()
    assert watch.facts()["drift"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("facts", "spoiled"),
    [
        ({"others_cores": 0.0, "drift": MOST_DRIFT / 2}, False),
        ({"others_cores": 0.0, "drift": MOST_DRIFT * 2}, True),
        ({"others_cores": 0.7, "drift": 0.0}, True),
        ({"others_cores": 0.0, "drift": 0.0, "throttling": ["power"]}, True),
        ({"others_cores": 0.0, "drift": 0.0, "throttling": []}, False),
        ({"others_cores": 0.0}, False),
        ({"others_cores": None, "drift": 0.0}, False),
        ({"others_cores": 7.0, "idle_cores": 8.0, "drift": 0.0}, False),
        ({"others_cores": 7.0, "idle_cores": 0.3, "drift": 0.0}, True),
        ({"others_cores": 7.0, "idle_cores": 8.0, "drift": MOST_DRIFT * 2}, True),
    ],
)
def test_drift_competition_and_throttling_spoil(facts: dict[str, object], spoiled: bool) -> None:  # noqa: FBT001 - a case
    """Any one of them does, others beside a GPU only where they leave no core idle; what was not noted does not."""
    assert is_spoiled(facts) == spoiled


def test_a_real_device_is_watched() -> None:
    """The kernels run on the processor, and take some time."""
    watch = Watch(CpuTimer(), CPU)
    watch.begin()
    assert min(watch.facts()["products_ns"]) > 1000


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"others_cores": 0.0, "drift": 0.0, "throttling": []}, ()),
        ({"others_cores": None, "drift": 0.0}, ()),
        ({"others_cores": 1.5, "drift": 0.0}, ("others keep 1.5 cores busy",)),
        ({"others_cores": 0.0, "drift": 0.75}, ("a fixed piece of work takes 75 % longer than at best",)),
        ({"others_cores": 0.0, "drift": 0.01, "throttling": ["power cap"]}, ("the GPU holds its clocks down (power cap)",)),
    ],
    ids=["nothing", "too early to tell", "others", "drift", "throttling"],
)
def test_the_cause_of_a_disturbance_is_told(facts: dict[str, Any], told: tuple[str, ...]) -> None:
    """Each by what it is, and nothing beside it; where there is none, nothing is spoiled."""
    assert disturbances(facts) == told
    assert is_spoiled(facts) == bool(told)
