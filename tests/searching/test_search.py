"""The search against trying every rate of the grid, on made-up candidates and on a real device."""

from __future__ import annotations

import json
import math
import os
import signal
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dooly import find_model, search
from dooly.errors import DoolyError, InvalidInputError
from dooly.searching import Evaluation, _workers, combine, rate_at, read_load
from dooly.searching import _search as module
from dooly.searching._evaluation import evaluate
from dooly.searching._limits import LIMITED, room, tightness
from dooly.searching._load import Load
from dooly.searching._rates import index_up_to
from dooly.searching._workers import open_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dooly.searching import Candidate, SearchResult
    from dooly.simulation import Workload

MADE_UP = [(find_model("smollm2-135m"),), ("h200",), "poisson:requests=2,prompt=1,output=2", {"tpot_p90": 1.0}]


def _made_up(capacity: float, met_up_to: float, rate: float) -> Evaluation:
    """Return what a candidate comes to that meets one second up to a rate."""
    latency_s = min(rate, 1e9) / met_up_to
    return Evaluation(rate, dict.fromkeys(LIMITED, latency_s), capacity, 2 * capacity, 100, {"measured": 1.0})


@settings(max_examples=30)
@given(st.data())
def test_the_best_are_those_of_an_exhaustive_search(data: st.DataObject) -> None:
    """Where limits are met up to some rate, the best candidates and their rates are those that trying every rate finds."""
    rates = st.tuples(st.floats(0.5, 100), st.floats(1e-5, 2))
    behaviour = data.draw(
        st.lists(rates, min_size=1, max_size=60), label="throughput, and share of it up to which limits are met"
    )
    top = data.draw(st.integers(1, 5), label="top")
    demanded = data.draw(st.none() | st.floats(0.1, 200), label="rate that copies bear together")
    places = {seqs: (capacity, capacity * share) for seqs, (capacity, share) in enumerate(behaviour, start=1)}

    @contextmanager
    def fake_workers(*_: object) -> Iterator[Callable[..., Future[Evaluation | str]]]:
        def submit(candidate: Candidate, rate: float) -> Future[Evaluation | str]:
            done: Future[Evaluation | str] = Future()
            done.set_result(_made_up(*places[candidate.serving.max_num_seqs], rate))
            return done

        yield submit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "open_workers", fake_workers)
        result = search(*MADE_UP, rate=demanded, choices={"max_num_seqs": tuple(places)}, top=top)  # type: ignore[arg-type]
    expected = {}
    for seqs, (capacity, met_up_to) in places.items():
        highest = index_up_to(capacity)
        rates_met = [rate_at(i) for i in range(highest - 300, highest + 1) if rate_at(i) / met_up_to <= 1]
        expected[seqs] = max(rates_met, default=0.0)
    best = sorted(expected.values(), reverse=True)
    found = [(each.candidate.serving.max_num_seqs, each.best.rate if each.best else 0.0) for each in result.candidates]
    assert [rate for _, rate in found[:top]] == best[:top]
    assert all(expected[seqs] == rate for (seqs, rate), each in zip(found, result.candidates, strict=True) if each.exact)
    assert all(expected[seqs] >= rate for seqs, rate in found)
    assert all(each.exact for each in result.candidates[:top] if each.best)
    copies = [each.copies for each in result.candidates if each.copies is not None]
    assert copies == ([] if demanded is None else sorted(copies))
    assert all("misses tpot_p90 at every rate" in each.reason for each in result.candidates if each.reason)


def test_a_rate_is_exact_only_where_the_next_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulation that cannot be ends the search of its candidate: what was met until then is a lower bound."""

    @contextmanager
    def fake_workers(*_: object) -> Iterator[Callable[..., Future[Evaluation | str]]]:
        tried: list[float] = []

        def submit(_candidate: Candidate, rate: float) -> Future[Evaluation | str]:
            done: Future[Evaluation | str] = Future()
            tried.append(rate)
            done.set_result(_made_up(10.0, 1.0 if math.isinf(rate) else 1e9, rate) if len(tried) < 3 else "too long")
            return done

        yield submit

    monkeypatch.setattr(module, "open_workers", fake_workers)
    (found,) = search(*MADE_UP).candidates  # type: ignore[arg-type]
    assert found.best is not None
    assert (found.reason, found.exact) == ("too long", False)


def test_a_real_device_agrees_with_every_rate(small_result: SearchResult) -> None:
    """The best candidate on an H200 and its rate are those of all rates of the grid up to its throughput."""
    load = read_load(small_result.workload)
    highest = {}
    for candidate in combine([find_model("llama-3.1-8b")], ["h200"], {"max_num_seqs": (4, 16)}):
        at_once = evaluate(candidate, load.at(math.inf), math.inf)
        assert isinstance(at_once, Evaluation)
        for index in reversed(range(index_up_to(at_once.requests_per_s) + 1)):
            found = evaluate(candidate, load.at(rate_at(index)), rate_at(index))
            assert isinstance(found, Evaluation)
            if room(found.latencies_s, small_result.limits) <= 1:
                highest[candidate] = found.rate
                break
    assert small_result.best is not None
    assert small_result.best.candidate == max(highest, key=lambda candidate: highest[candidate])
    assert small_result.best.goodput_per_gpu == highest[small_result.best.candidate]


def test_of_equal_rates_the_one_with_more_room_is_better() -> None:
    """Where the tightest limits are alike to a percent, the next ones decide: nobody is sent to the edge of one for a trifle."""
    limits = {"ttft_p90": 0.2, "tpot_p90": 0.012}
    at_the_edge, ample = {"ttft_p90": 0.1966, "tpot_p90": 0.011825}, {"ttft_p90": 0.057, "tpot_p90": 0.011831}
    assert tightness(ample, limits) == (0.99, 0.28) < tightness(at_the_edge, limits) == (0.99, 0.98)
    assert tightness({"ttft_p90": None, "tpot_p90": 0.006}, limits) == (0.5, 0.0)


def test_candidates_that_cannot_be_are_told_why(small_result: SearchResult) -> None:
    """A candidate that no engine runs comes last with its reason."""
    (refused,) = dict(small_result.without_rate)
    assert "32 attention heads cannot be divided over 3 ranks" in refused
    assert [found.candidate.serving.tensor_parallel_size for found in small_result.candidates] == [1, 1, 3, 3]


def test_a_stopped_search_goes_on_where_it_was(small_search: Callable[..., SearchResult], tmp_path: Path) -> None:
    """A state that was cut off within a line gives the same answer, by what it lacks alone, and is whole again."""
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    expected = json.dumps(small_search(num_processes=1, state=whole).to_json())
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    asked: list[tuple[int, int]] = []
    found = small_search(num_processes=1, state=cut, progress=lambda done, total: asked.append((done, total)))
    assert json.dumps(found.to_json()) == expected
    assert sorted(cut.read_bytes().splitlines()) == sorted(content.splitlines())
    assert asked[0] == (1, 4)
    assert asked[-1] == (1, 1)


def test_what_was_refused_is_not_tried_again(small_search: Callable[..., SearchResult], tmp_path: Path) -> None:
    """A search that goes on from a whole state simulates nothing, and tries none of the candidates that cannot be."""
    state = tmp_path / "state.jsonl"
    first = small_search(num_processes=1, state=state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_workers, "evaluate", None)
        assert small_search(num_processes=1, state=state).to_json() == first.to_json()


def test_a_task_holds_no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests are drawn out to a rate where they are simulated and when: tasks that wait hold none of their own."""
    under_way, most = 0, 0

    def at(load: Load, rate: float) -> Workload:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        return drawn(load, rate)

    def simulate(_candidate: Candidate, _workload: Workload, rate: float) -> Evaluation:
        nonlocal under_way
        under_way -= 1
        return _made_up(10.0, 1.0, rate)

    load, (candidate, *_) = read_load(str(MADE_UP[2])), combine([find_model("smollm2-135m")], ["h200"], {})
    drawn = Load.at
    monkeypatch.setattr(Load, "at", at)
    monkeypatch.setattr(_workers, "evaluate", simulate)
    with open_workers(load, 1, None) as submit:
        found = [task.result() for task in [submit(candidate, rate) for rate in (0.5, 2.0, math.inf)]]
    assert found == [_made_up(10.0, 1.0, rate) for rate in (0.5, 2.0, math.inf)]
    assert most == 1


def test_a_ray_cluster_changes_nothing(small_search: Callable[..., SearchResult], small_result: SearchResult) -> None:
    """Two workers of a Ray cluster find the same as one process."""
    pytest.importorskip("ray", reason="Ray is not installed; it comes with the test extra")
    assert small_search(ray="local", num_processes=2).to_json() == small_result.to_json()


def test_ray_is_asked_for_where_it_lacks(small_search: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray, the message names what installs it."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InvalidInputError, match=r"pip install 'dooly-llm\[ray\]'"):
        small_search(ray="auto")


def _die(*_: object) -> None:
    """End this process as the kernel does where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says that a process was killed, how to need less memory, and how to keep what is done."""
    monkeypatch.setattr(_workers, "_simulate_there", _die)
    with pytest.raises(DoolyError, match=r"^search: one of 2 processes was killed.*fewer --processes.*--state") as caught:
        search(*MADE_UP, num_processes=2)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.fixture
def five_or_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines on an H200 bear 5 requests a second, on others 4, and of two ranks 10; the grid has 4.9 and 3.98."""

    @contextmanager
    def fake_workers(*_: object) -> Iterator[Callable[..., Future[Evaluation | str]]]:
        def submit(candidate: Candidate, rate: float) -> Future[Evaluation | str]:
            done: Future[Evaluation | str] = Future()
            met_up_to = 10.0 if candidate.num_gpus == 2 else 5.0 if candidate.hardware == "h200" else 4.0
            done.set_result(_made_up(10, met_up_to, rate))
            return done

        yield submit

    monkeypatch.setattr(module, "open_workers", fake_workers)


@pytest.mark.parametrize(
    ("demanded", "expected"),
    [
        (None, [(2, 10.0, None), (1, 4.9, None)]),
        (4, [(1, 4.9, 1), (2, 10.0, 2)]),
        (6, [(2, 10.0, 2), (1, 4.9, 2)]),
        (9.9, [(2, 10.0, 2), (1, 4.9, 3)]),
        (11, [(1, 4.9, 3), (2, 10.0, 4)]),
    ],
)
@pytest.mark.usefixtures("five_or_four")
def test_a_demanded_rate_takes_the_fewest_gpus(demanded: float | None, expected: list[tuple[int, float, int | None]]) -> None:
    """Copies of a candidate bear it together; the fewest GPUs are the best, of equal ones the most requests a GPU."""
    found = search(*MADE_UP, rate=demanded, choices={"tensor_parallel_size": (1, 2)})  # type: ignore[arg-type]
    told = [(each.candidate.num_gpus, each.best and each.best.rate, each.total_gpus) for each in found.candidates]
    assert told == expected
    assert found.demanded == demanded


@pytest.mark.usefixtures("five_or_four")
def test_a_rate_in_the_workload_is_demanded() -> None:
    """`rate=` there and the argument are one thing; both at once are refused, as is what no rate is."""
    models, hardware, workload, limits = MADE_UP
    stated = f"{workload},rate=11"
    found = search(models, hardware, stated, limits)  # type: ignore[arg-type]
    assert found.best is not None
    assert (found.demanded, found.best.copies) == (11.0, 3)
    with pytest.raises(InvalidInputError, match="states rate=11 already; leave one of them out"):
        search(models, hardware, stated, limits, rate=11)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"--rate: must be a positive finite number .* got inf; leave it out"):
        search(models, hardware, f"{workload},rate=inf", limits)  # type: ignore[arg-type]


@pytest.mark.usefixtures("five_or_four")
def test_prices_decide_where_there_are_any() -> None:
    """The cheapest candidate is the best, though another has more requests a GPU; its cost is that of the rate."""
    models, _, workload, limits = MADE_UP
    devices = ["h200", "h100"]
    assert search(models, devices, workload, limits).best.candidate.hardware == "h200"  # type: ignore[arg-type,union-attr]
    best = search(models, devices, workload, limits, prices={"h200": 3.6, "h100": 1.8}).best  # type: ignore[arg-type]
    assert best is not None
    assert best.best is not None
    assert best.candidate.hardware == "h100"
    assert best.cost_per_1000_requests == pytest.approx(1000 * 1.8 / 3600 / best.best.rate)
    demand = partial(search, models, devices, workload, limits, rate=9.5, prices={"h200": 3.6, "h100": 2.5})
    dear = demand().best  # type: ignore[call-arg,arg-type]
    assert dear is not None
    assert (dear.candidate.hardware, dear.copies) == ("h200", 2)
    assert dear.cost_per_1000_requests == pytest.approx(1000 * 2 * 3.6 / 3600 / 9.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limits": {}}, "no latency is limited"),
        ({"limits": {"ttft_p91": 1.0}}, "'ttft_p91' is none of ttft"),
        ({"limits": {"ttft_p90": 0.0}}, "ttft_p90 must be a positive finite number"),
        ({"top": 0}, "top and num_processes must be at least 1"),
        ({"choices": {"max_seqs": (1,)}}, "'max_seqs' is no setting"),
        ({"choices": {"max_num_seqs": ()}}, "max_num_seqs: needs one value or more"),
        ({"choices": {"max_num_seqs": (8, 8)}}, "each once, got 8, 8"),
        ({"choices": {"max_num_seqs": (0,)}}, "--max-num-seqs: 0 is not at least 1"),
        ({"prices": {"h100": 2.0}}, "give one for each hardware, h200"),
        ({"prices": {"h200": -1.0}}, "h200 must cost a positive finite amount"),
        ({"workload": "closed:concurrency=2,prompt=1,output=1"}, "closed loop have no request rate"),
    ],
)
def test_a_bad_argument_is_named(arguments: dict[str, object], message: str) -> None:
    """What breaks a rule is refused in one line before anything is simulated."""
    models, hardware, workload, limits = MADE_UP
    given_arguments = {"models": models, "hardware": hardware, "workload": workload, "limits": limits} | arguments
    with pytest.raises(InvalidInputError, match=message):
        search(**given_arguments)  # type: ignore[arg-type]
