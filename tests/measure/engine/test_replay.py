from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from dooly.measure.engine._replay import Replay
from dooly.measure.timers import MAX_ROUNDS, MIN_ROUNDS
from dooly.measure.timers._timer import CpuTimer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dooly.measure.timers import Call, PreparedCalls, Timing


class Recorded(nn.Module):
    """Adds a number, and writes down each call."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name = name
        self.log = log

    def forward(self, x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
        """Return `x + by`."""
        self.log.append(self.name)
        return x + by


class Model(nn.Module):
    """Calls a module, a shared one, another, and the shared one again."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self.first = Recorded("first", log)
        self.shared = Recorded("shared", log)
        self.second = Recorded("second", log)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x + 1 + 2 + 1 + 3`."""
        x = self.shared(self.first(x), by=2.0)
        return self.shared(self.second(x), by=3.0)  # type: ignore[no-any-return]


class CountingTimer(CpuTimer):
    """Says that every call took 1,000 ns."""

    def __init__(self) -> None:
        self.results: list[object] = []

    def prepare(self, calls: Sequence[Call]) -> PreparedCalls:
        """Return calls whose results are kept."""
        return _Counted(calls, self.results)


class _Counted:
    host_ahead = True

    def __init__(self, calls: Sequence[Call], results: list[object]) -> None:
        self.timings: tuple[Timing, ...] = tuple("perf_counter" for _ in calls)
        self._calls = calls
        self._results = results

    def time_ns(self) -> list[int]:
        """Run the calls, and keep what they returned."""
        self._results += [call.run() for call in self._calls]
        return [1000] * len(self._calls)


@pytest.fixture
def log() -> list[str]:
    """The calls of all modules, in order."""
    return []


@pytest.fixture
def model(log: list[str]) -> Model:
    """A model that writes its calls to `log`."""
    return Model(log)


def test_targets_are_replayed_in_the_order_of_the_step(model: Model, log: list[str]) -> None:
    """After the forward, all captured calls run again round by round, as the step made them, arguments included."""
    timer = CountingTimer()
    replay = Replay(timer, {model.second: "b", model.first: "a", model.shared: "s"}, budget_ns=10**9)
    with replay.attached(model):
        result = model(torch.zeros(1))
    assert result.item() == 1 + 2 + 1 + 3
    step = ["first", "shared", "second", "shared"]
    assert log == step * (len(log) // len(step))
    assert [value.item() for value in timer.results[:4]] == [1, 3, 4, 7]  # type: ignore[attr-defined]


def test_every_round_but_the_first_gives_samples(model: Model, log: list[str]) -> None:
    """The first round warms up; a module that a step calls twice gives two samples a round."""
    replay = Replay(CountingTimer(), {model.first: "a", model.shared: "s"}, budget_ns=10**9)
    with replay.attached(model):
        model(torch.zeros(1))
    rounds = Counter(log)["first"] - 1
    assert MIN_ROUNDS <= rounds <= MAX_ROUNDS
    assert replay.samples_ns == {"a": [1000] * (rounds - 1), "s": [1000] * (2 * (rounds - 1))}


def test_companions_run_untimed(model: Model, log: list[str]) -> None:
    """A target without a signature is replayed, but leaves no samples."""
    replay = Replay(CountingTimer(), {model.first: None, model.second: "b"}, budget_ns=10**9)
    with replay.attached(model):
        model(torch.zeros(1))
    assert set(replay.samples_ns) == {"b"}
    assert Counter(log)["first"] == Counter(log)["second"] > MIN_ROUNDS


def test_companions_alone_are_not_replayed(model: Model, log: list[str]) -> None:
    """Where nothing is timed, nothing runs again."""
    with Replay(CountingTimer(), {model.first: None}, budget_ns=10**9).attached(model):
        model(torch.zeros(1))
    assert Counter(log)["first"] == 1


def test_modules_outside_the_forward_are_replayed_after_their_own_call(model: Model, log: list[str]) -> None:
    """Logits and sampling run after the model's forward, each on its own."""
    head = Recorded("head", log)
    replay = Replay(CountingTimer(), {model.first: "a", head: "h"}, budget_ns=10**9)
    with replay.attached(model):
        head(model(torch.zeros(1)))
    assert set(replay.samples_ns) == {"a", "h"}
    assert log.index("head") > max(place for place, name in enumerate(log) if name == "first")


class FallingBehind(CountingTimer):
    """A timer whose host is not ahead in one round, and which refuses capture from a second group of calls on."""

    def __init__(self, behind: int) -> None:
        super().__init__()
        self.behind = behind
        self.groups = 0

    def prepare(self, calls: Sequence[Call]) -> PreparedCalls:
        """Return calls that fall behind in that round of the first group."""
        self.groups += 1
        return _FallingBehind(calls, self.results, self.behind if self.groups == 1 else -1, captured=self.groups == 1)


class _FallingBehind(_Counted):
    def __init__(self, calls: Sequence[Call], results: list[object], behind: int, *, captured: bool) -> None:
        super().__init__(calls, results)
        self.timings = tuple("cuda-graph" if captured else "cuda-events" for _ in calls)
        self._behind, self._round = behind, 0

    def time_ns(self) -> list[int]:
        """Time a round, and tell whether the host was ahead in it."""
        self.host_ahead = self._round != self._behind
        self._round += 1
        return super().time_ns()


@pytest.mark.parametrize(("behind", "host_ahead"), [(0, True), (1, False), (2, False), (MAX_ROUNDS, True)])
def test_one_round_behind_is_told(model: Model, behind: int, host_ahead: bool) -> None:  # noqa: FBT001 - the expected answer
    """The host was ahead only if it was in every round whose samples are kept; the first round is not."""
    replay = Replay(FallingBehind(behind), {model.first: "a"}, budget_ns=10**9)
    with replay.attached(model):
        model(torch.zeros(1))
    assert replay.attributes == {"a": {"timing": "cuda-graph", "host_ahead": host_ahead}}


def test_samples_of_several_calls_keep_what_is_true_of_all(model: Model, log: list[str]) -> None:
    """Where an operation is replayed twice in a step, later samples do not hide how the earlier were taken."""
    head = Recorded("head", log)
    replay = Replay(FallingBehind(1), {head: "h"}, budget_ns=10**9)
    with replay.attached(model):
        head(head(model(torch.zeros(1))))
    assert replay.attributes == {"h": {"timing": "cuda-events+cuda-graph", "host_ahead": False}}


def test_hooks_are_gone_afterwards(model: Model, log: list[str]) -> None:
    """Outside the scope the model runs as before, also where a step failed in it."""
    replay = Replay(CountingTimer(), {model.first: "a"}, budget_ns=10**9)
    with pytest.raises(TypeError), replay.attached(model):
        model("not a tensor")
    log.clear()
    model(torch.zeros(1))
    assert log == ["first", "shared", "second", "shared"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_spent_budget_ends_the_rounds(model: Model, log: list[str]) -> None:
    """Samples that stay wide apart are taken until the budget ends, but for the least number of rounds."""
    replay = Replay(CountingTimer(), {model.first: "a"}, budget_ns=0)
    with replay.attached(model):
        model(torch.zeros(1))
    assert Counter(log)["first"] == 1 + MIN_ROUNDS
