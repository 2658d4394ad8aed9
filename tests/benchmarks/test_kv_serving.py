"""What a benchmark says of the users of policies is what simulated engines serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dooly.engines import find_model
from dooly.kv_policy import KVPolicy
from dooly.predict import default_serving, load_latency_model
from dooly.simulation import num_at_once

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:  # noqa: ANN401 - a module
    """`benchmarks/kv_serving.py`."""
    return load_script("benchmarks/kv_serving.py")


def test_no_more_fit_than_an_engine_serves_at_once(script: Any) -> None:  # noqa: ANN401 - a module
    """At 130,000 tokens the last prompt needs all its blocks beside what is kept of the others, however many wait."""
    model = find_model("llama-3.1-8b")
    serving = default_serving(model, "h200")
    latency = load_latency_model(model=model, serving=serving, hardware="h200")
    engine = script.Engine(latency, serving, KVPolicy("snapkv", 0.2), 130_000)
    fit, config = engine.num_fit(), engine.config
    # What is kept of each without any of its answer, beside one whole prompt.
    most = 1 + (config.num_kv_blocks - 1 - 130_000 // 16) // (26_000 // 16)
    assert fit <= most < engine.num_held
    assert fit == num_at_once(engine.serve(2 * engine.num_held, 2 * engine.num_held))


def test_users_are_tried_one_by_one_where_there_are_few(script: Any) -> None:  # noqa: ANN401 - a module
    """An odd number below 20 is found, and the most that is tried where all have their tokens in time: no more than are held."""

    class Upto(script.Engine):  # type: ignore[misc]
        num_held = 300

        def __init__(self, most: int) -> None:
            self.most = most

        def within(self, users: int, limit_s: float) -> bool:
            return limit_s > 0 and users <= self.most

    assert [Upto(most).most_users(1) for most in (0, 1, 13, 20, 33, 1000)] == [0, 1, 13, 20, 32, script.USERS[-1]]
    Upto.num_held = 7
    assert Upto(1000).most_users(1) == 7
