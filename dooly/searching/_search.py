"""Which candidates serve the most within their latency limits, by simulations in rounds that do not depend on who simulates.

Goodput is the highest request rate at which percentiles of latency meet their limits, for each GPU (Zhong et al., *DistServe*,
OSDI 2024); it is found by bisection, as in Vidur's search (Agrawal et al., MLSys 2024), over a grid of rates. Candidates that
cannot be among the best are left as soon as a simulation says so.
"""

from __future__ import annotations

import math
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any

from dooly.errors import InvalidInputError
from dooly.searching._bracket import WORTHLESS, Bracket
from dooly.searching._candidate import ONE_ENGINE, combine
from dooly.searching._limits import check_limits, tightness
from dooly.searching._load import read_load
from dooly.searching._rates import rate_at
from dooly.searching._result import FoundCandidate, SearchResult
from dooly.searching._state import SearchState
from dooly.searching._workers import open_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from dooly.engines import ModelSource
    from dooly.predict import Interconnect
    from dooly.searching._bracket import Value
    from dooly.searching._evaluation import Evaluation
    from dooly.searching._load import Load
    from dooly.searching._workers import Submit
    from dooly.simulation import FleetLayout

_ROUND = 32
"""Simulations of a round. The same on every machine, so that all do the same ones."""


def search(  # noqa: PLR0913 - what is searched, what for, and where it runs
    models: Sequence[ModelSource],
    hardware: Sequence[str],
    workload: str,
    limits: Mapping[str, float],
    *,
    rate: float | None = None,
    choices: Mapping[str, Sequence[Any]] | None = None,
    interconnect: Interconnect | None = None,
    host_slowdown: float | None = None,
    fleets: Sequence[FleetLayout] = (ONE_ENGINE,),
    prices: Mapping[str, float] | None = None,
    top: int = 10,
    state: Path | None = None,
    num_processes: int | None = None,
    ray: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SearchResult:
    """Find which models, devices and engine settings serve the most requests within latency limits, for each GPU or its price.

    With a rate demanded: which serve that rate with the fewest GPUs, or for the least. Where one does not bear it, copies of it
    do, each of which is sent an equal share in the workload's pattern; how requests are shared is not simulated.

    The answer depends on the arguments alone, not on how many processes or machines work on it. A script that uses more than one
    process must be importable: what it runs stands under `if __name__ == "__main__":`.

    Args:
        models: The models.
        hardware: Devices that `dooly hardware` lists, or folders of such data.
        workload: The requests as `parse_workload` takes them; their rate is what is searched. One that it states as `rate=` is
            demanded as `rate` is.
        limits: Service-level objectives: seconds by metric (`ttft`, `tpot`, `itl`, `e2e`) and statistic (`mean`, `p50`, `p90`,
            `p95`, `p99`), as `{"ttft_p90": 0.5}`. All must be met.
        rate: Requests a second that must be sustained; None for as many as can be, unless the workload states a rate.
        choices: Values to try by setting of `ServingConfig`, as `{"max_num_seqs": (64, 256)}`; every combination is a candidate.
            Other settings are as `vllm serve` starts on the device.
        interconnect: A link between ranks in place of measured collectives.
        host_slowdown: How many times as long the engines' host takes to launch a step as the one measured; None for as long.
        fleets: How many engines to try, and how requests come to them, each with every combination of the rest.
        prices: What a GPU of each hardware costs an hour; with it, the cheapest candidate is the best.
        top: How many candidates to find the highest rate of; of the others it is enough to know that they are not among these.
        state: A file that keeps each simulation as soon as it is done, and from which a search that was stopped goes on.
        num_processes: Processes on this machine; by default one a core.
        ray: Address of a Ray cluster to simulate on, or `local` for one on this machine.
        progress: Told how many simulations of a round are done, and of how many; rounds go on until the best are settled.

    Raises:
        InvalidInputError: An argument breaks a rule, which the message names; or there is no such cluster.
        WorkloadError: The workload is malformed, or its requests have no rate.
        DoolyError: A process that simulates was killed, as where memory is short.

    Examples:
        >>> model, limits = dooly.find_model("llama-3.1-8b"), {"ttft_p90": 0.1, "tpot_p90": 0.015}
        >>> workload, choices = "poisson:requests=40,prompt=256,output=4", {"max_num_seqs": (2, 8)}
        >>> found = dooly.search([model], ["h200"], workload, limits, choices=choices, num_processes=1)
        >>> found.best.candidate.serving.max_num_seqs
        8
    """
    check_limits(limits)
    if top < 1 or (num_processes is not None and num_processes < 1):
        raise InvalidInputError(f"search: top and num_processes must be at least 1, got {top} and {num_processes}")
    candidates = combine(models, hardware, choices or {}, interconnect, fleets, host_slowdown)
    if interconnect is not None and all(c.num_gpus == c.fleet.num_replicas for c in candidates):
        raise InvalidInputError("--interconnect: engines of one rank have no link to others; leave it out, or give ranks to try")
    _check_prices(prices, hardware)
    load = read_load(workload)
    demanded = _demanded(rate, load)
    gpu_prices = [None if prices is None else prices[candidate.hardware] for candidate in candidates]
    brackets = [
        Bracket(candidate, candidate.num_gpus * (1.0 if price is None else price), limits, demanded)
        for candidate, price in zip(candidates, gpu_prices, strict=True)
    ]
    with SearchState(load, state) as done, open_workers(load, num_processes, ray) as submit:
        while tasks := _next_round(brackets, top):
            for count, (bracket, found) in enumerate(_simulated(tasks, done, submit), start=1):
                bracket.learn(found)
                if progress is not None:
                    progress(count, len(tasks))
    order = sorted(range(len(brackets)), key=lambda place: (_rank(brackets[place], limits), place))
    best_first = tuple(_found(brackets[place], gpu_prices[place], demanded) for place in order)
    return SearchResult(workload, dict(limits), best_first, load.workload.notes, demanded)


def _demanded(rate: float | None, load: Load) -> float | None:
    """Return the rate that must be sustained, whichever way it was given; None where none was."""
    if rate is not None and load.stated is not None:
        raise InvalidInputError(f"--rate: the workload states rate={load.stated:g} already; leave one of them out")
    demanded = load.stated if rate is None else rate
    if demanded is not None and not 0 < demanded < math.inf:
        raise InvalidInputError(
            f"--rate: must be a positive finite number of requests a second, got {demanded:g}; leave it out for the highest"
        )
    return demanded


def _check_prices(prices: Mapping[str, float] | None, hardware: Sequence[str]) -> None:
    if prices is None:
        return
    if set(prices) != set(hardware):
        raise InvalidInputError(
            f"search: prices: give one for each hardware, {', '.join(hardware)}; got {', '.join(prices) or 'none'}"
        )
    for name, price in prices.items():
        if not 0 < price < math.inf:
            raise InvalidInputError(f"search: prices: {name} must cost a positive finite amount an hour, got {price}")


def _worth(brackets: Iterable[Bracket], top: int) -> Value:
    """Return the value that `top` candidates are known to reach; nothing while there are fewer."""
    values = sorted((bracket.value(bracket.met) for bracket in brackets if bracket.met is not None), reverse=True)
    return values[top - 1] if len(values) >= top else WORTHLESS


def _is_live(bracket: Bracket, worth: Value) -> bool:
    """Whether another simulation of a candidate may change which are the best."""
    return bracket.is_open and (not bracket.evaluations or bracket.value(bracket.ceiling - 1) >= worth)


def _next_round(brackets: Sequence[Bracket], top: int) -> list[tuple[Bracket, float]]:
    """Return which candidates to simulate next, and at which rates: those first that may still be best."""
    if fresh := [bracket for bracket in brackets if bracket.reason is None and not bracket.evaluations]:
        return [(bracket, math.inf) for bracket in fresh]
    worth = _worth(brackets, top)
    live = [bracket for bracket in brackets if _is_live(bracket, worth)]
    live.sort(key=lambda bracket: bracket.value(bracket.ceiling - 1), reverse=True)
    return [(bracket, bracket.next_rate(worth)) for bracket in live[:_ROUND]]


def _simulated(
    tasks: Sequence[tuple[Bracket, float]], done: SearchState, submit: Submit
) -> Iterable[tuple[Bracket, Evaluation | str]]:
    """Yield what each simulation came to as soon as it is known, and keep it."""
    running = {}
    for bracket, rate in tasks:
        if (known := done.find(bracket.candidate, rate)) is not None:
            yield bracket, known
        else:
            running[submit(bracket.candidate, rate)] = bracket, rate
    for future in as_completed(running):
        (bracket, rate), found = running[future], future.result()
        done.add(bracket.candidate, rate, found)
        yield bracket, found


def _rank(bracket: Bracket, limits: Mapping[str, float]) -> tuple[int, float, float, tuple[float, ...]]:
    """Return what candidates are sorted by, the best first."""
    if bracket.best is not None and bracket.met is not None:
        demanded, share = bracket.value(bracket.met)
        return 0, -demanded, -share, tightness(bracket.best.latencies_s, limits)
    if bracket.reason is None:
        demanded, share = bracket.value(bracket.ceiling - 1)
        return 1, -demanded, -share, ()
    return (2 if bracket.evaluations else 3), 0.0, 0.0, ()


def _found(bracket: Bracket, price: float | None, demanded: float | None) -> FoundCandidate:
    return FoundCandidate(
        bracket.candidate,
        bracket.best,
        None if bracket.reason is not None else rate_at(bracket.ceiling),
        exact=bracket.met is not None and bracket.met == bracket.ceiling - 1,
        ends_early=bracket.met is not None and bracket.met == bracket.saturated - 1,
        reason=bracket.reason,
        price_per_gpu_hour=price,
        evaluations=tuple(bracket.evaluations[rate] for rate in sorted(bracket.evaluations)),
        demanded=demanded,
    )
