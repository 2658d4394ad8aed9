"""Competition for the cores, told by processor times that count in ticks."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from dooly.measure.timers import Contention, _contention


class CpuTimes(NamedTuple):
    """Processor times as psutil has them."""

    user: float
    idle: float
    iowait: float = 0.0
    guest: float = 0.0


@dataclass
class Machine:
    """A machine of four cores, whose processor times count in ticks of 10 ms."""

    now: float = 100.0
    own: float = 0.0
    others: float = 0.0

    def run(self, seconds: float, *, own: float = 0.0, others: float = 0.0) -> None:
        """Let time pass while this process and others keep cores busy."""
        self.now += seconds
        self.own += own * seconds
        self.others += others * seconds

    def cpu_times(self) -> CpuTimes:
        """Return the times of all cores; half of what is idle waits for a disk, and a guest's time is a user's too."""
        busy = self._ticks(self.own + self.others)
        idle = (4 * (self.now - 100.0) - busy) / 2
        return CpuTimes(busy + 1.0, idle, idle, 1.0)

    def process(self) -> SimpleNamespace:
        """Return this process, half of whose time is the system's."""
        half = lambda: self._ticks(self.own) / 2  # noqa: E731
        return SimpleNamespace(cpu_times=lambda: SimpleNamespace(user=half(), system=half()))

    @staticmethod
    def _ticks(seconds: float) -> float:
        return int(seconds * 100 + 1e-6) / 100


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine in place of this one."""
    found = Machine()
    monkeypatch.setattr(_contention, "time", SimpleNamespace(perf_counter=lambda: found.now))
    monkeypatch.setattr(_contention, "psutil", SimpleNamespace(cpu_times=found.cpu_times, Process=found.process))
    return found


def test_others_are_told_from_this_process_and_from_idle_cores(machine: Machine) -> None:
    """What this process takes is not others', and what waits for a disk is idle."""
    machine.run(5.0, others=3.0)
    contention = Contention()
    machine.run(1.0, own=2.0, others=0.5)
    cores = contention.cores()
    assert cores is not None
    assert cores.others == pytest.approx(0.5)
    assert cores.idle == pytest.approx(1.5)


def test_each_measurement_has_its_own(machine: Machine) -> None:
    """Those before, and what ran between them, count no more once a measurement is long enough to tell."""
    contention = Contention()
    machine.run(1.0, others=2.0)
    contention.begin()
    machine.run(1.0, own=4.0)
    cores = contention.cores()
    assert cores is not None
    assert cores.others == pytest.approx(0.0)


def test_too_short_a_time_tells_nothing(machine: Machine) -> None:
    """A tick of another's within 4 ms is no two and a half cores, however many measurements of 4 ms there were."""
    machine.others = 0.0099
    contention = Contention()
    machine.run(0.004, others=0.1)
    assert contention.cores() is None
    contention.begin()
    assert contention.cores() is None


def test_short_measurements_look_back(machine: Machine) -> None:
    """They are told by the ones before as well, over no longer than is needed, and stay below a threshold that others do."""
    contention = Contention()
    machine.run(10.0, others=4.0)
    found = []
    for _ in range(200):
        contention.begin()
        machine.run(0.004, own=1.0, others=0.1)
        cores = contention.cores()
        assert cores is not None
        found.append(cores.others)
    assert found[0] > 3
    assert max(found[60:]) < 0.2
    assert sum(found[60:]) / len(found[60:]) == pytest.approx(0.1, rel=0.3)
    assert len(contention._marks) < 60
