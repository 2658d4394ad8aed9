from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from dooly.simulation import Request, Turn, Workload, parse_workload
from dooly.validation import RealRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dooly.engines import Engine


@dataclass(frozen=True)
class Output:
    """A token of a request."""

    request_id: str
    finished: bool


class OneByOne:
    """An engine without a model: each step computes all of a prompt, or a token, of every request that was added."""

    def __init__(self) -> None:
        self.num_preemptions = 0
        self.most_at_once = 0
        self._left: dict[str, int] = {}
        self._num_added = 0
        self._worked: dict[str, tuple[int, int]] = {}

    def prompt(self, num_tokens: int) -> Sequence[int]:
        """Return a prompt of ones."""
        return [1] * num_tokens

    def add(self, prompt: Sequence[int], num_output_tokens: int, *, priority: int) -> str:
        """Queue a request."""
        del prompt, priority
        name = f"r{self._num_added}"
        self._num_added += 1
        self._left[name] = num_output_tokens
        return name

    def step(self) -> list[Output]:
        """Give each request its next token."""
        self.most_at_once = max(self.most_at_once, len(self._left))
        self._worked = dict.fromkeys(self._left, (1, 0))
        self._left = {name: left - 1 for name, left in self._left.items()}
        outputs = [Output(name, left == 0) for name, left in self._left.items()]
        self._left = {name: left for name, left in self._left.items() if left}
        return outputs

    def scheduler_outputs(self) -> Sequence[Any]:
        """Return what the last step worked on."""
        return [self._worked]

    def work(self, output: Any) -> Mapping[str, tuple[int, int]]:  # noqa: ANN401 - the engine's own
        """Return it as it is."""
        return cast("Mapping[str, tuple[int, int]]", output)

    def has_unfinished_requests(self) -> bool:
        """Tell whether a request lacks tokens."""
        return bool(self._left)


def run(engine: OneByOne, workload: Workload) -> RealRun:
    """Return a run of a workload by an engine."""
    return RealRun(cast("Engine", engine), workload)


def test_a_turn_is_sent_when_its_user_has_thought_about_the_answer() -> None:
    """As in the simulation: a turn follows the end of the one before it, and other requests their own times."""
    think_s = 0.02
    requests = (
        Request(0, 0, 8, 4, turn=Turn(0)),
        Request(1, 0, 20, 2, turn=Turn(0, follows=0, think_ns=round(think_s * 1e9))),
        Request(2, 5_000_000, 8, 1),
        Request(3, 5_000_000, 30, 1, turn=Turn(0, follows=1)),
    )
    result = run(OneByOne(), Workload(requests, "by hand")).run()
    first, second, other, third = result.rows
    assert second.arrival_s == pytest.approx(first.finish_s + think_s, abs=1e-8)
    assert third.arrival_s == pytest.approx(second.finish_s, abs=1e-8)
    assert (first.arrival_s, other.arrival_s) == (0.0, 0.005)
    assert all(row.arrival_s <= row.scheduled_s <= row.first_token_s <= row.finish_s for row in result.rows)


def test_users_of_a_closed_loop_have_one_request_under_way() -> None:
    """Three users are never more than three requests, and all are served."""
    engine = OneByOne()
    result = run(engine, parse_workload("closed:concurrency=3,requests=10,prompt=4,output=1-5")).run()
    assert engine.most_at_once == 3
    assert len(result.rows) == 10
    arrivals = [row.arrival_s for row in result.rows]
    assert arrivals == sorted(arrivals)
